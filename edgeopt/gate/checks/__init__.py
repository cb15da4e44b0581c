"""The checks, one file each. See ``edgeopt/gate/check.py``."""
