"""A stand-in for TensorRT's Python API and libcudart: records the calls, and "runs" an engine with ONNX Runtime.

No TensorRT can be installed where these tests run. What it shows is which calls are made, in which order, with which
flags, and that what comes back is read rightly; what TensorRT itself does with them it cannot show.
"""

from __future__ import annotations

import ctypes
import json
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from edgeopt.runtimes.onnxruntime import Session

LAYERS = {
    "Layers": [
        {
            "Name": "stem + relu6",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
        },
        {
            "Name": "Reformatting CopyNode",
            "LayerType": "Reformat",
            "ParameterType": "Reformat",
            "Inputs": [{"Name": "y", "Format/Datatype": "Row major linear FP32"}],
        },
        {
            "Name": "logits",
            "LayerType": "gemm",
            "Inputs": [{"Name": "z", "DataType": "Float"}],
        },
    ]
}


class StandIn(ModuleType):
    """``tensorrt`` of one version. ``calls`` holds what was called, in order."""

    def __init__(self, version: str, *, layers: dict[str, Any] = LAYERS, fails: str = "") -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.calls: list[tuple[str, Any]] = []
        self._layers, self._fails = layers, fails
        major = int(version.split(".")[0])

        class Severity(IntEnum):
            INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

        class ILogger:
            def __init__(self) -> None:
                pass

        ILogger.Severity = Severity
        self.ILogger = ILogger
        self.IProfiler = type("IProfiler", (), {"__init__": lambda one: None})
        self.IInt8EntropyCalibrator2 = type("IInt8EntropyCalibrator2", (), {"__init__": lambda one: None})
        # what a version does not have raises AttributeError, as there
        if major < 10:
            self.NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0)
        elif major == 10:
            self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.BuilderFlag = SimpleNamespace(GPU_FALLBACK="GPU_FALLBACK")
        if major < 11:
            self.BuilderFlag.INT8, self.BuilderFlag.FP16 = "INT8", "FP16"
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.DeviceType = SimpleNamespace(DLA="DLA")
        self.LayerInformationFormat = SimpleNamespace(JSON="json")
        self.TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
        self.nptype = np.dtype

    def said(self, name: str) -> list[Any]:
        return [value for called, value in self.calls if called == name]

    # builder, parser, runtime: the functions of the module

    def Builder(self, logger: Any) -> Any:
        def build(network: Any, config: Any) -> bytes | None:
            self.calls.append(("build", dict(vars(config))))
            if self._fails == "build":
                logger.log(self.ILogger.Severity.ERROR, "could not find any implementation for node stem")
                return None
            return network.model

        def new_network(flags: int) -> Any:
            self.calls.append(("network", flags))
            return SimpleNamespace(model=b"")

        return SimpleNamespace(
            create_network=new_network,
            create_builder_config=lambda: Config(self.calls),
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        def parse(data: bytes, path: str | None = None) -> bool:
            self.calls.append(("parse", len(data)))
            network.model = data
            return self._fails != "parse"

        return SimpleNamespace(
            parse=parse, num_errors=1, get_error=lambda index: "node 'cat': unsupported operator", network=network
        )

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda data: Engine(self, bytes(data), json.dumps(self._layers)))


class Config:
    def __init__(self, calls: list[tuple[str, Any]]) -> None:
        self._calls = calls

    def set_flag(self, flag: str) -> None:
        self._calls.append(("flag", flag))

    def create_timing_cache(self, data: bytes) -> bytes:
        self._calls.append(("timing cache read", data))
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"timed")


class Engine:
    def __init__(self, module: StandIn, model: bytes, layers: str) -> None:
        self._module, self._layers = module, layers
        self.session = Session(model, optimize=False)
        self._names = [*self.session.inputs, *self.session.outputs]
        self.num_io_tensors = len(self._names)

    def create_engine_inspector(self) -> Any:
        def information(form: str) -> str:
            assert form == "json"
            return self._layers

        return SimpleNamespace(get_engine_information=information)

    def create_execution_context(self) -> Any:
        return Context(self)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def _info(self, name: str) -> tuple[str, tuple[int, ...]]:
        return (self.session.inputs | self.session.outputs)[name]

    def get_tensor_dtype(self, name: str) -> str:
        return self._info(name)[0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._info(name)[1]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.session.inputs else "output"


class Context:
    """Reads and writes the addresses that it was given, which here are the host's."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._addresses = engine, {}
        self.profiler = None

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def _array(self, name: str) -> np.ndarray:
        dtype, shape = self._engine.get_tensor_dtype(name), self._engine.get_tensor_shape(name)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self._addresses[name]), dtype).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        session = self._engine.session
        for name, made in session.run({name: self._array(name) for name in session.inputs}).items():
            ctypes.memmove(self._addresses[name], np.ascontiguousarray(made).ctypes.data, made.nbytes)
        if self.profiler is not None:  # made up: nothing was timed
            for name, ms in (("stem + relu6", 0.25), ("logits", 0.5)):
                self.profiler.report_layer_time(name, ms)
        return True


class StandInCuda:
    """Memory of the host in place of a GPU's."""

    held: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        self._buffers: dict[int, Any] = {}

    def devices(self) -> int:
        return 1

    def allocate(self, size: int) -> int:
        buffer = ctypes.create_string_buffer(size)
        address = ctypes.addressof(buffer)
        self._buffers[address] = buffer
        StandInCuda.held.add(address)
        return address

    def free(self, pointer: int) -> None:
        del self._buffers[pointer]
        StandInCuda.held.discard(pointer)

    def to_device(self, pointer: int, array: np.ndarray) -> None:
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

    def to_host(self, array: np.ndarray, pointer: int) -> None:
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)

    def wait(self) -> None:
        pass
