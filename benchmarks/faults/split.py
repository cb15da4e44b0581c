"""Which kinds and models the gate was developed with, and which were held out: fixed before any held-out one was run.

Held out are the kinds of `blind_kinds.py`: written, with the words that name them, by someone who had not seen the gate
or any result of it. The held-out kinds of two earlier runs were seen since, and are development kinds now.
"""

from benchmarks.faults import blind_kinds

DEVELOPMENT_MODELS = ("quickstart", "vww", "resnet20")
HELD_OUT_MODELS = ("mobilenet_v1", "ultraface", "fastestdet")

HELD_OUT_KINDS = frozenset(
    {
        *blind_kinds.TABLE, *blind_kinds.FILE, *blind_kinds.IMPORT, *blind_kinds.CALIBRATION, *blind_kinds.EVALUATION,
    }
)  # fmt: skip
