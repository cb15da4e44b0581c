"""TFLite files: a light model in memory, a reader that refuses what is broken, a writer, and ``cut``."""

from edgeopt.formats.tflite.contents import CONVERSIONS, MOVERS, WEIGHTED, constant_bytes, operator_counts, precision
from edgeopt.formats.tflite.cutting import cut
from edgeopt.formats.tflite.layout import LAYOUTS, Layout, layouts
from edgeopt.formats.tflite.model import Model, Operator, Tensor, drop_unused, integers_of
from edgeopt.formats.tflite.reading import read
from edgeopt.formats.tflite.schema import ALIGNMENT
from edgeopt.formats.tflite.writing import with_files, write

__all__ = [
    "ALIGNMENT",
    "CONVERSIONS",
    "LAYOUTS",
    "MOVERS",
    "WEIGHTED",
    "Layout",
    "Model",
    "Operator",
    "Tensor",
    "constant_bytes",
    "cut",
    "drop_unused",
    "integers_of",
    "layouts",
    "operator_counts",
    "precision",
    "read",
    "with_files",
    "write",
]
