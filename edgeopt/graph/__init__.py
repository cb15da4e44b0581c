"""The float graph (``onnx_ir.Model``), the table of scales beside it, and what both mean."""
