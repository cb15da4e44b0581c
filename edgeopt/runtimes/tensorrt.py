"""Builds and runs TensorRT engines with TensorRT's own Python API. Imports nothing but it, numpy and libcudart.

The same file lies in every bundle as ``engine.py``: ``python3 engine.py`` there builds the engine, counts its int8
layers and compares it with the saved outputs. Hence Python 3.8's language and NumPy 1.17's functions.

Written from TensorRT's documentation of 8.5 to 11, and run against a stand-in that records the calls; no TensorRT ran
where it was written.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # JetPack 5.1 has Python 3.8 and a NumPy without it
    import numpy.typing as npt

    Array = npt.NDArray[Any]

MODEL, DLA_MODEL, PLAN, TIMING_CACHE, CALIBRATION = (
    "model.onnx", "model.dla.onnx", "model.plan", "timing.cache", "calibration.cache",
)  # fmt: skip
SAMPLES = "samples.npz"
INPUT_KEY, OUTPUT_KEY = "input/", "output/"
WARM_UP, RUNS = 10, 100


def missing() -> str:
    """Why no engine can be built here, in words; empty where one can."""
    try:
        import tensorrt
    except ImportError:
        return "TensorRT's Python package is not installed here"
    try:
        cuda = Cuda()
    except OSError as error:
        return f"the CUDA runtime is not here: {error}"
    if not cuda.devices():
        return f"TensorRT {tensorrt.__version__} is here, and no GPU"
    return ""


def version() -> str:
    import tensorrt

    return str(tensorrt.__version__)


@dataclass(frozen=True)
class Layers:
    """What the engine inspector says: type of layer → how many, by precision.

    ``other`` are layers that only change format or move.
    """

    int8: dict[str, int] = field(default_factory=dict)
    floating: dict[str, int] = field(default_factory=dict)
    other: dict[str, int] = field(default_factory=dict)


def build(
    model: Path, plan: Path, *, timing_cache: Path | None = None, dla: bool = False, calibration: Path | None = None
) -> Layers:
    """Build an engine for the GPU (or DLA core 0) of this machine, and read back what it holds.

    Args:
        model: the ONNX file.
        plan: where the engine goes.
        timing_cache: read if it is there, and written: kernels that were timed once are not timed again.
        dla: for the DLA, with fallback to the GPU. calibration: its scales, in TensorRT's own text format.

    Raises:
        ValueError: the parser refuses the file; the message is its own.
        RuntimeError: no engine came out.
    """
    import tensorrt as trt

    major = int(str(trt.__version__).split(".")[0])
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, major, dla))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.read_bytes(), str(model)):  # the path is for weights in files beside it
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise ValueError(f"TensorRT {trt.__version__} refuses {model.name}: {errors}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if major < 10 or dla:
        config.set_flag(trt.BuilderFlag.INT8)
        config.set_flag(trt.BuilderFlag.FP16)
    if dla:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = 0
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        if calibration is not None:
            config.int8_calibrator = _scales(trt, calibration)
    if timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        said = "; ".join(logger.errors[-3:])
        raise RuntimeError(f"TensorRT {trt.__version__} built no engine of {model.name}{': ' + said if said else ''}")
    plan.write_bytes(bytes(serialized))
    if timing_cache is not None:
        timing_cache.parent.mkdir(parents=True, exist_ok=True)
        timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    engine = trt.Runtime(logger).deserialize_cuda_engine(bytes(serialized))
    inspector = engine.create_engine_inspector()
    return count_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _network_flags(trt: Any, major: int, dla: bool) -> int:
    """8.x: explicit batch. 10.x: types come from the file, except on the DLA. 11.x: they always do."""
    if major < 10:
        return int(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    if major == 10 and not dla:
        return int(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return 0


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors for the exception that follows them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Logger()


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        """Adds up what each layer took."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.ms: Counter[str] = Counter()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.ms[layer_name] += ms  # type: ignore[assignment]

    return Profiler()


def _scales(trt: Any, cache: Path) -> Any:
    class Scales(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        """Calibrates nothing: hands over scales that were found before."""

        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Sequence[str]) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache.read_bytes()

        def write_calibration_cache(self, content: bytes) -> None:
            return None

    return Scales()


MOVING = ("reformat", "shuffle", "slice", "concat", "constant", "noop", "myelin_move", "signal", "wait", "cast")


def count_layers(text: str) -> Layers:
    """Layers of an engine by precision, from the inspector's JSON (``Inputs`` with ``Format/Datatype`` up to 10.x,
    ``DataType`` from 11 on). A layer that reads int8 computes in int8, whatever it writes."""
    counts: dict[str, Counter[str]] = {"int8": Counter(), "floating": Counter(), "other": Counter()}
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, str):  # built without detailed verbosity: names only
            counts["other"]["unknown"] += 1
            continue
        kind = str(layer.get("ParameterType") or layer.get("LayerType") or "unknown")
        types = [str(one.get("DataType") or one.get("Format/Datatype") or "") for one in layer.get("Inputs", [])]
        names = (kind + str(layer.get("LayerType", ""))).lower()
        if any(word in names for word in MOVING):
            counts["other"][kind] += 1
        elif any("int8" in one.lower() for one in types):
            counts["int8"][kind] += 1
        else:
            counts["floating"][kind] += 1
    return Layers(**{name: dict(sorted(found.items())) for name, found in counts.items()})


class Cuda:
    """The five functions of libcudart that running an engine needs.

    Raises:
        OSError: there is no libcudart.
    """

    def __init__(self) -> None:
        name = ctypes.util.find_library("cudart") or "libcudart.so"
        try:
            self._library = ctypes.CDLL(name)
        except OSError:
            self._library = ctypes.CDLL("/usr/local/cuda/lib64/libcudart.so")

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._library, name)(*arguments):
            raise RuntimeError(f"{name} ended with CUDA error {code}")

    def devices(self) -> int:
        count = ctypes.c_int(0)
        try:
            self._call("cudaGetDeviceCount", ctypes.byref(count))
        except RuntimeError:
            return 0
        return count.value

    def allocate(self, size: int) -> int:
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer.value or 0

    def free(self, pointer: int) -> None:
        self._call("cudaFree", ctypes.c_void_p(pointer))

    def to_device(self, pointer: int, array: Array) -> None:
        self._copy(pointer, array.ctypes.data, array.nbytes, 1)

    def to_host(self, array: Array, pointer: int) -> None:
        self._copy(array.ctypes.data, pointer, array.nbytes, 2)

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        self._call(
            "cudaMemcpy", ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_int(kind)
        )

    def wait(self) -> None:
        self._call("cudaDeviceSynchronize")


class Session:
    """One loaded engine; a context manager, as its memory on the GPU must have an end.

    Args:
        plan: the engine's file.

    Raises:
        ValueError: TensorRT cannot load it: built by another release or for another GPU.
    """

    def __init__(self, plan: Path) -> None:
        import tensorrt as trt

        self._cuda, self._logger = Cuda(), _logger(trt)
        self._engine = trt.Runtime(self._logger).deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise ValueError(f"TensorRT {trt.__version__} does not load {plan.name}: {'; '.join(self._logger.errors)}")
        self._context = self._engine.create_execution_context()
        self.inputs: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.outputs: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._buffers: dict[str, int] = {}
        for index in range(self._engine.num_io_tensors):
            name = str(self._engine.get_tensor_name(index))
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            shape = tuple(int(size) for size in self._engine.get_tensor_shape(name))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[name] = (dtype.name, shape)
            self._buffers[name] = self._cuda.allocate(int(np.prod(shape)) * dtype.itemsize)
            self._context.set_tensor_address(name, self._buffers[name])

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Arrays must have the engine's dtypes and shapes; ValueError otherwise."""
        for name, (dtype, shape) in self.inputs.items():
            array = np.ascontiguousarray(feed[name])
            if array.dtype.name != dtype or array.shape != shape:
                given = f"{array.dtype.name} {list(array.shape)}"
                raise ValueError(f"input '{name}' is {given}; the engine takes {dtype} {list(shape)}")
            self._cuda.to_device(self._buffers[name], array)
        self._execute()
        made = {}
        for name, (dtype, shape) in self.outputs.items():
            made[name] = np.empty(shape, dtype)
            self._cuda.to_host(made[name], self._buffers[name])
        return made

    def _execute(self, context: Any = None) -> None:
        if not (context or self._context).execute_async_v3(0):
            raise RuntimeError(f"the engine does not run: {'; '.join(self._logger.errors)}")
        self._cuda.wait()

    def median_ms(self, runs: int = RUNS) -> float:
        """Median of one run on what the inputs hold, copies left out."""
        for _ in range(WARM_UP):
            self._execute()
        spent = []
        for _ in range(runs):
            began = time.perf_counter()
            self._execute()
            spent.append(1e3 * (time.perf_counter() - began))
        return statistics.median(spent)

    def layer_ms(self, runs: int = RUNS) -> dict[str, float]:
        """Mean ms of each layer on what the inputs hold, by TensorRT's profiler: in a context of its own, which it
        slows down."""
        import tensorrt as trt

        context, profiler = self._engine.create_execution_context(), _profiler(trt)
        for name, pointer in self._buffers.items():
            context.set_tensor_address(name, pointer)
        for _ in range(WARM_UP):
            self._execute(context)
        context.profiler = profiler
        for _ in range(runs):
            self._execute(context)
        return {name: ms / runs for name, ms in profiler.ms.items()}

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pointer in self._buffers.values():
            self._cuda.free(pointer)
        del self._context, self._engine


@dataclass(frozen=True)
class Comparison:
    """An engine on saved inputs, against the saved outputs: dB over all outputs, and the median of one run."""

    sqnr_db: float
    samples: int
    median_ms: float


def compare(plan: Path, samples: Path) -> Comparison:
    """Run an engine on the arrays ``input/NAME`` of an npz, against its ``output/NAME``; first axis samples."""
    with np.load(samples, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    given = {name[len(INPUT_KEY) :]: array for name, array in arrays.items() if name.startswith(INPUT_KEY)}
    expected = {name[len(OUTPUT_KEY) :]: array for name, array in arrays.items() if name.startswith(OUTPUT_KEY)}
    count = len(next(iter(given.values())))
    signal = noise = 0.0
    with Session(plan) as session:
        for index in range(count):
            made = session.run({name: array[index] for name, array in given.items()})
            for name, wanted in expected.items():
                exact = wanted[index].astype(np.float64)
                signal += float(np.square(exact).sum())
                noise += float(np.square(made[name].astype(np.float64) - exact).sum())
        median = session.median_ms()
    decibels = 300.0 if noise == 0 else float(10 * np.log10(max(signal, 1e-300) / noise))
    return Comparison(decibels, count, median)


def main() -> int:
    """In a bundle: build, count, compare. ``python3 engine.py [dla]``."""
    folder = Path(__file__).resolve().parent
    if reason := missing():
        sys.stderr.write(f"{reason}: run this on the device that the engine is for\n")
        return 3
    dla = "dla" in sys.argv[1:]
    plan = folder / PLAN
    layers = build(
        folder / (DLA_MODEL if dla else MODEL),
        plan,
        timing_cache=folder / TIMING_CACHE,
        dla=dla,
        calibration=folder / CALIBRATION if dla else None,
    )
    result = compare(plan, folder / SAMPLES)
    said = {
        "tensorrt": version(), "int8": layers.int8, "float": layers.floating, "other": layers.other,
        "sqnr_db": round(result.sqnr_db, 2), "samples": result.samples, "median_ms": round(result.median_ms, 4),
    }  # fmt: skip
    sys.stdout.write(json.dumps(said, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
