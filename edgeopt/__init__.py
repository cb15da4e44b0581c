"""edgeopt takes a trained vision model to edge devices and proves that it still works there."""

__version__ = "0.1.0"
