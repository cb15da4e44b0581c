"""Post-training quantization: one stage, one file. ``Quantize`` is the pass."""

from edgeopt.passes.quantize.quantize import Quantize

__all__ = ["Quantize"]
