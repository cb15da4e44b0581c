"""The TensorRT target: a bundle that a device builds its engine from, and the rules that any ONNX file must keep to."""
