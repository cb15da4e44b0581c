from __future__ import annotations
import onnx_ir as ir
OLDEST = 13
def convert_opset(model: ir.Model, version: int) -> None:
    if model.graph.opset_imports[""] != version: raise ValueError("x")
