"""TFLite, written straight from graph and table: no converter, no second quantization."""

from edgeopt.targets.tflite.target import TfliteTarget

__all__ = ["TfliteTarget"]
