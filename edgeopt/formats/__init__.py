"""File formats: how ONNX and TFLite files are read, checked and written. What belongs into one is decided elsewhere."""
