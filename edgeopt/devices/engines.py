"""How the published measurements' runtimes map to edgeopt's, and which of them are fitted together.

=====================  =====  =============  ==========  ======================================================
measured as            unit   runtime        delegate    why
=====================  =====  =============  ==========  ======================================================
ncnn                   cpu    ncnn           –
ncnn                   gpu    ncnn           vulkan
tflite                 cpu    tflite         –           ruy or XNNPACK, as the submitter built it
xnnpack                cpu    tflite         xnnpack     TFLite with its XNNPACK delegate
armnn                  cpu    tflite         armnn       TFLite graphs through Arm NN (Neon)
armnn                  gpu    tflite         armnn       the same on Mali (OpenCL)
tflite, tflite_gpu     gpu    tflite         gpu
tflite                 npu    tflite         qnn         AI Hub: TFLite with the QNN delegate; Ethos: its driver
tflite_nnapi           npu    tflite         nnapi
tflite_edgetpu         tpu    tflite         edgetpu
tflite_nnapi, tflite   tpu    tflite         nnapi       the Pixel's own TPU
tflite_coreml_…        ane    tflite         coreml
qnn                    npu    qnn            –
snpe                   npu    qnn            snpe        QNN's predecessor on the same unit
onnxruntime            npu    onnxruntime    qnn         AI Hub: ONNX Runtime with the QNN provider
onnxruntime            cpu    onnxruntime    –
tensorrt               gpu    tensorrt       –
pytorch                gpu    pytorch        –
coreml                 ane    coreml         –
paddle_lite, other     cpu    none           –           prior knowledge of CPU kernels only
tensorflow             any    none           –           prior knowledge only
=====================  =====  =============  ==========  ======================================================
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Engine:
    """A runtime of edgeopt on a compute unit; ``runtime`` is None for measurements that only inform the others."""

    runtime: str | None
    delegate: str | None


_TABLE: dict[tuple[str, str], Engine] = {
    ("ncnn", "cpu"): Engine("ncnn", None),
    ("ncnn", "gpu"): Engine("ncnn", "vulkan"),
    ("tflite", "cpu"): Engine("tflite", None),
    ("xnnpack", "cpu"): Engine("tflite", "xnnpack"),
    ("armnn", "cpu"): Engine("tflite", "armnn"),
    ("armnn", "gpu"): Engine("tflite", "armnn"),
    ("tflite", "gpu"): Engine("tflite", "gpu"),
    ("tflite_gpu", "gpu"): Engine("tflite", "gpu"),
    ("tflite", "npu"): Engine("tflite", "qnn"),
    ("tflite_nnapi", "npu"): Engine("tflite", "nnapi"),
    ("tflite_edgetpu", "tpu"): Engine("tflite", "edgetpu"),
    ("tflite_nnapi", "tpu"): Engine("tflite", "nnapi"),
    ("tflite", "tpu"): Engine("tflite", "nnapi"),
    ("tflite_coreml_delegate", "ane"): Engine("tflite", "coreml"),
    ("qnn", "npu"): Engine("qnn", None),
    ("snpe", "npu"): Engine("qnn", "snpe"),
    ("onnxruntime", "npu"): Engine("onnxruntime", "qnn"),
    ("onnxruntime", "cpu"): Engine("onnxruntime", None),
    ("tensorrt", "gpu"): Engine("tensorrt", None),
    ("pytorch", "gpu"): Engine("pytorch", None),
    ("coreml", "ane"): Engine("coreml", None),
}
_NONE = Engine(None, None)


def engine_of(measured: str) -> Engine:
    """What ``runtime/unit/precision`` of a measurement is here."""
    runtime, unit, _ = measured.split("/")
    return _TABLE.get((runtime, unit), _NONE)


def fusion_of(measured: str) -> str:
    """Whose fusion rules hold: delegates to an NPU fuse as QNN does."""
    runtime, unit, _ = measured.split("/")
    if unit in ("npu", "ane"):
        return "coreml" if runtime == "coreml" else "qnn"
    if runtime == "paddle_lite":
        return "ncnn"
    return engine_of(measured).runtime or "tflite"


def group_of(measured: str) -> str:
    """Measurements whose rates resemble each other so that few can lean on many: the unit of pooling.

    ncnn's float on CPU is one group: whether it computes in fp16 is the device's property.
    """
    runtime, unit, precision = measured.split("/")
    if runtime in ("ncnn", "tflite_gpu") or (runtime == "tflite" and unit == "gpu"):
        if unit == "gpu":
            return "gpu/mobile"
        return "cpu/ncnn/int8" if precision == "int8" else "cpu/ncnn/float"
    if runtime == "armnn":
        return f"{unit}/armnn/{precision}"
    if unit in ("npu", "ane"):
        return "npu/fp16" if precision in ("fp32", "fp16") else f"npu/{precision}"
    if unit == "tpu":
        return "tpu/int8"
    if unit == "gpu":
        return "gpu/nvidia"
    if runtime == "onnxruntime" and precision in ("int8", "w8a16"):
        return f"npu/{precision}"  # AI Hub's CPU fallback of boards without a large NPU
    return "cpu/tflite/int8" if precision == "int8" else "cpu/tflite/fp32"
