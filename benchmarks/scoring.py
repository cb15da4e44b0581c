"""Run an ONNX or TFLite file on arrays, and compare outputs. Code of its own: nothing here is edgeopt's."""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Runner = Callable[[np.ndarray], np.ndarray]


def joined(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The output, or (1, all values of all outputs) where there are several."""
    return outputs[0] if len(outputs) == 1 else np.concatenate([y.reshape(len(y), -1) for y in outputs], 1)


def onnx_runner(path: Path, *, optimize: bool = True, precise: bool = True) -> Runner:
    """One thread, the CPU provider. (1, C, H, W) float32 → the outputs, `joined`.

    `precise`: on x86 without VNNI, kernels for int8 weights that do not saturate; elsewhere it changes nothing. It is
    what makes such a file mean there what it says, so every tool's file gets it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: joined(session.run(None, {name: x}))


@functools.cache
def saturates() -> bool:
    """Whether ONNX Runtime's kernels for int8 weights clip sums of products here: 2 · 255 · 127 > 2¹⁵."""
    import onnx
    import onnxruntime as ort

    tensors = [
        onnx.helper.make_tensor_value_info(name, kind, [64, 64])
        for name, kind in (("a", onnx.TensorProto.UINT8), ("b", onnx.TensorProto.INT8), ("c", onnx.TensorProto.INT32))
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["c"])], "g", tensors[:2], tensors[2:]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"a": np.full((64, 64), 255, np.uint8), "b": np.full((64, 64), 127, np.int8)})[0]
    return bool((found != 64 * 255 * 127).any())


class TFLiteRunner:
    """One thread, XNNPACK on. (1, C, H, W) float32 → the outputs as float32 in the source's layout, `joined`."""

    def __init__(self, path: Path, output_rank4_channels: int | None = None):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(str(path), num_threads=1)
        self.interpreter.allocate_tensors()
        self.input, self.outputs = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()
        self.channels = output_rank4_channels

    def prepared(self, x: np.ndarray) -> np.ndarray:
        """The input as the file takes it: channels last if it does, quantized if it does."""
        wanted = tuple(self.input["shape"])
        if x.ndim == 4 and tuple(x.shape) != wanted and wanted == (x.shape[0], *x.shape[2:], x.shape[1]):
            x = x.transpose(0, 2, 3, 1)
        if self.input["dtype"] != np.float32:
            scale, zero = self.input["quantization"]
            limit = np.iinfo(self.input["dtype"])
            x = np.clip(np.round(x / scale) + zero, limit.min, limit.max).astype(self.input["dtype"])
        return np.ascontiguousarray(x)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.interpreter.set_tensor(self.input["index"], self.prepared(x))
        self.interpreter.invoke()
        return joined([self.read(output) for output in self.outputs])

    def read(self, output: dict[str, Any]) -> np.ndarray:
        y = self.interpreter.get_tensor(output["index"])
        if output["dtype"] != np.float32:
            scale, zero = output["quantization"]
            y = (y.astype(np.float32) - zero) * np.float32(scale)
        if y.ndim == 4 and self.channels is not None and y.shape[1] != self.channels and y.shape[3] == self.channels:
            y = y.transpose(0, 3, 1, 2)
        return y

    def operators(self) -> list[str]:
        """The names of the operators as written in the file, delegates aside."""
        return [o["op_name"] for o in self.interpreter._get_ops_details() if o["op_name"] != "DELEGATE"]

    def partitions(self) -> int:
        """How many pieces of the graph the delegate took; 1 with nothing left over is the whole graph."""
        return sum(o["op_name"] == "DELEGATE" for o in self.interpreter._get_ops_details())


def outputs(runner: Runner, images: np.ndarray) -> np.ndarray:
    """Every image by itself, in order: (n, ...)."""
    return np.concatenate([np.array(runner(images[k : k + 1])) for k in range(len(images))])


def sqnr_db(reference: np.ndarray, candidate: np.ndarray) -> float:
    """10·log10(signal / error) over all outputs and samples together."""
    r, c = (np.asarray(v, np.float64).ravel() for v in (reference, candidate))
    return float(10 * np.log10((r**2).sum() / max(((c - r) ** 2).sum(), 1e-30)))


def agreement(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Share of samples, in percent, whose largest output is the same."""
    a, b = (v.reshape(len(v), -1).argmax(1) for v in (reference, candidate))
    return 100 * float((a == b).mean())


def top1(candidate: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float((candidate.reshape(len(candidate), -1).argmax(1) == labels).mean())


def share_interval(right: Sequence[bool]) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    n, share, z = len(right), float(np.mean(right)), 1.959964
    middle, half = share + z * z / (2 * n), z * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def paired_points(
    ours: Sequence[bool], theirs: Sequence[bool], *, draws: int = 10000, seed: int = 0
) -> tuple[float, float, float]:
    """Points of accuracy that ours has more, and their 95 % bootstrap interval over images drawn for both alike."""
    gain = np.array(ours, float) - np.array(theirs, float)
    chosen = np.random.default_rng(seed).integers(0, len(gain), (draws, len(gain)))
    low, high = np.percentile(gain[chosen].mean(1), [2.5, 97.5])
    return 100 * float(gain.mean()), 100 * float(low), 100 * float(high)


def interleaved_ms(calls: dict[str, Callable[[], object]], *, rounds: int, runs: int = 5) -> dict[str, list[float]]:
    """Milliseconds of every call, in turn and round after round: what else the machine does then strikes all alike.

    A turn is one run that is not counted, in which the neighbour's data leaves the caches, and `runs` in a row, as a
    model runs that is given frame after frame; their median is the round's value.
    """
    for call in calls.values():
        for _ in range(runs):
            call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    names: Sequence[str] = list(calls)
    for k in range(rounds):
        for name in (*names[k % len(names) :], *names[: k % len(names)]):
            calls[name]()
            turn = []
            for _ in range(runs):
                began = time.perf_counter()
                calls[name]()
                turn.append(1e3 * (time.perf_counter() - began))
            spent[name].append(float(np.median(turn)))
    return spent


def paired_ratio(
    ours: list[float], theirs: list[float], *, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of medians, and its 95 % bootstrap interval over rounds drawn for both alike."""
    a, b = np.array(ours), np.array(theirs)
    chosen = np.random.default_rng(seed).integers(0, len(a), (draws, len(a)))
    ratios = np.median(a[chosen], 1) / np.median(b[chosen], 1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(np.median(a) / np.median(b)), float(low), float(high)
