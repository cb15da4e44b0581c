"""Which kinds and models the gate was developed with, and which were held out: fixed before any held-out one was run.

The first split was spoilt: the gate had been changed with the results of its held-out kinds in sight. Those kinds are
development kinds now, and other kinds and models, which nobody had run, were written and set apart instead.
"""

from benchmarks.faults import blind_kinds, held_out_kinds

DEVELOPMENT_MODELS = ("quickstart", "vww", "resnet20")
HELD_OUT_MODELS = ("mobilenet_v1", "ultraface", "fastestdet")

HELD_OUT_KINDS = frozenset(
    {
        *held_out_kinds.TABLE, *held_out_kinds.FILE, *held_out_kinds.IMPORT, *held_out_kinds.CALIBRATION,
        *held_out_kinds.EVALUATION,
    }
)  # fmt: skip

BLIND = frozenset(
    {
        *blind_kinds.TABLE, *blind_kinds.FILE, *blind_kinds.IMPORT, *blind_kinds.CALIBRATION, *blind_kinds.EVALUATION,
    }
)  # fmt: skip
"""Held out too: written, with the words that name them, by someone who had not seen the gate or any result of it."""
