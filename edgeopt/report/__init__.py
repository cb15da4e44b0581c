"""The run record as people and machines read it: console, ``report.json``, ``report.md``."""
