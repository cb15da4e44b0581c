"""Every operator of the MIL reference, in programs that coremltools wrote, against an evaluation that is not ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.runtimes.mil_reference import Session
from edgeopt.runtimes.mil_reference.operators import OPERATORS, compression
from tests.integration.mil_cases import CASES, Case, t

ct = pytest.importorskip("coremltools")
pytestmark = pytest.mark.filterwarnings("ignore")
OPSETS = ("iOS15", "iOS16", "iOS17", "iOS18")
NAMES = [f"{case.op}_{index}" for index, case in enumerate(CASES)]


def save(path: Path, inputs: dict[str, np.ndarray], body: Callable[[dict[str, Any]], list[Any]], opset: str) -> Path:
    """A package of one function, written by coremltools without any pass that rewrites it."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program, types

    kinds = {"f": types.fp32, "i": types.int32}
    placeholders = {
        name: mb.placeholder(shape=array.shape or (1,), dtype=kinds[array.dtype.kind]) for name, array in inputs.items()
    }
    target = getattr(ct.target, opset)
    with Function(placeholders, opset_version=target) as function:
        function.set_outputs(body(dict(function.inputs)))
    program = Program()
    program.add_function("main", function)
    ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    ).save(str(path))
    return path


def arrays_of(case: Case, name: str) -> dict[str, np.ndarray]:
    found = {}
    for key, value in case.feed.items():
        for index, array in enumerate(value if isinstance(value, tuple) else (value,)):
            found[f"{name}_{key}_{index}"] = np.asarray(array)
    return found


def as_results(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def emit(case: Case, name: str, given: dict[str, Any]) -> list[Any]:
    """The operator on variables of the program; results that no output can hold are cast."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    keywords: dict[str, Any] = {}
    for key, value in case.feed.items():
        variables = [given[f"{name}_{key}_{i}"] for i in range(len(value) if isinstance(value, tuple) else 1)]
        if not isinstance(value, tuple) and np.ndim(value) == 0:
            variables = [mb.squeeze(x=variable, axes=[0]) for variable in variables]
        if key in case.cast:
            variables = [mb.cast(x=variable, dtype=case.cast[key]) for variable in variables]
        keywords[key] = tuple(variables) if isinstance(value, tuple) else variables[0]
    results = as_results(getattr(mb, case.op)(**keywords, **case.params, name=name))
    outputs = []
    for index, result in enumerate(results):
        final = f"{name}_result_{index}"
        dtype = "int32" if result.dtype not in (types.fp32, types.fp16) else "fp32"
        outputs.append(mb.cast(x=result, dtype=dtype, name=final))
    return outputs


def inferred(case: Case) -> tuple[Any, ...]:
    """What coremltools computes when all inputs are constants."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function

    with Function({"unused": mb.placeholder(shape=(1,))}, opset_version=getattr(ct.target, case.opset)):
        keywords = {
            key: tuple(mb.const(val=np.array(one)) for one in value)
            if isinstance(value, tuple)
            else mb.const(val=np.array(value))
            for key, value in case.feed.items()
        }
        keywords = {
            key: mb.cast(x=value, dtype=case.cast[key]) if key in case.cast else value
            for key, value in keywords.items()
        }
        results = as_results(getattr(mb, case.op)(**keywords, **case.params))
        return tuple(result.val for result in results)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> Iterator[dict[tuple[str, bool], Session]]:
    """One program per deployment target with all of its cases side by side: a session computes what is asked of it."""
    folder, opened = tmp_path_factory.mktemp("operators"), {}
    for opset in OPSETS:
        cases = {name: case for name, case in zip(NAMES, CASES, strict=True) if case.opset == opset}
        feeds = {key: array for name, case in cases.items() for key, array in arrays_of(case, name).items()}

        def body(given: dict[str, Any], cases: dict[str, Case] = cases) -> list[Any]:
            return [output for name, case in cases.items() for output in emit(case, name, given)]

        path = save(folder / f"{opset}.mlpackage", feeds, body, opset)
        opened |= {(opset, use_torch): Session(path, use_torch=use_torch) for use_torch in (False, True)}
    yield opened
    for session in opened.values():
        session.__exit__(None, None, None)


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_others_compute(name, sessions):
    case = CASES[NAMES.index(name)]
    if case.expected is None:
        expected = inferred(case)
        assert all(value is not None for value in expected), "coremltools does not infer this: give an evaluation"
    else:
        given = [one for value in case.feed.values() for one in (value if isinstance(value, tuple) else (value,))]
        expected = as_results(case.expected(*(t(array) for array in given)))
    feeds = {key: array.reshape(array.shape or (1,)) for key, array in arrays_of(case, name).items()}
    outputs = [f"{name}_result_{index}" for index in range(len(expected))]
    for use_torch in (False, True) if case.op in ("conv", "conv_transpose") else (False,):
        found = sessions[case.opset, use_torch].run(feeds, outputs)
        for output, right in zip(outputs, expected, strict=True):
            value = found[output]
            assert value.shape == np.shape(right) or value.size == np.size(right) == 1
            np.testing.assert_allclose(value, np.asarray(right), rtol=case.tolerance, atol=case.tolerance)


def test_every_operator_has_a_case():
    elsewhere = {name for name in compression.OPERATORS if name.startswith("constexpr_")}  # tested below
    assert set(OPERATORS) - elsewhere == {case.op for case in CASES} - elsewhere
    assert len(OPERATORS) >= 70


RNG = np.random.default_rng(5)
DENSE = RNG.standard_normal((4, 6)).astype(np.float32)
BYTES = RNG.integers(-128, 128, (4, 6)).astype(np.int8)
MASK = RNG.integers(0, 2, (4, 6)).astype(np.uint8)
KEPT = int(MASK.sum())
SCALE = RNG.uniform(0.1, 1, (4, 2)).astype(np.float32)
PALETTE = RNG.standard_normal(16).astype(np.float32)


def sub_byte(values: np.ndarray, dtype: str) -> np.ndarray:
    from coremltools.converters.mil.mil import types

    return values.astype(types.string_to_nptype(dtype))


def constants() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Name → deployment target, operator, parameters."""
    indices = RNG.integers(0, 4, (4, 6))
    return {
        "affine": ("iOS16", "constexpr_affine_dequantize", {
            "quantized_data": BYTES, "zero_point": np.int8(3), "scale": np.float32(0.25), "axis": 0}),
        "affine_per_channel": ("iOS16", "constexpr_affine_dequantize", {
            "quantized_data": BYTES, "zero_point": BYTES[0], "scale": DENSE[0], "axis": -1}),
        "cast": ("iOS16", "constexpr_cast", {"source_val": DENSE.astype(np.float16), "output_dtype": "fp32"}),
        "palette_16": ("iOS16", "constexpr_lut_to_dense", {
            "indices": np.packbits(RNG.integers(0, 2, 96).astype(np.uint8)), "lut": PALETTE,
            "shape": np.array([4, 6], np.uint32)}),
        "palette_64": ("iOS16", "constexpr_lut_to_dense", {
            "indices": np.packbits(RNG.integers(0, 2, 144).astype(np.uint8)),
            "lut": RNG.standard_normal(64).astype(np.float32), "shape": np.array([4, 6], np.uint32)}),
        "sparse": ("iOS16", "constexpr_sparse_to_dense", {
            "nonzero_data": DENSE[MASK != 0], "mask": np.packbits(MASK.reshape(-1), bitorder="little"),
            "shape": np.array([4, 6], np.uint32)}),
        "blockwise": ("iOS18", "constexpr_blockwise_shift_scale", {
            "data": sub_byte(RNG.integers(-8, 8, (4, 6)), "int4"), "scale": SCALE}),
        "blockwise_offset": ("iOS18", "constexpr_blockwise_shift_scale", {
            "data": sub_byte(RNG.integers(0, 16, (4, 6)), "uint4"), "scale": SCALE,
            "offset": sub_byte(RNG.integers(0, 16, (4, 2)), "uint4")}),
        "palette_per_group": ("iOS18", "constexpr_lut_to_dense", {
            "indices": sub_byte(indices, "uint2"), "lut": RNG.standard_normal((2, 3, 4, 1)).astype(np.float32)}),
        "palette_of_vectors": ("iOS18", "constexpr_lut_to_dense", {
            "indices": sub_byte(indices, "uint2"), "lut": RNG.standard_normal((1, 2, 4, 3)).astype(np.float32),
            "vector_axis": np.int32(0)}),
        "sparse_mask": ("iOS18", "constexpr_sparse_to_dense", {
            "nonzero_data": DENSE[MASK != 0], "mask": sub_byte(MASK, "uint1")}),
        "sparse_palette": ("iOS18", "constexpr_lut_to_sparse", {
            "indices_mask": sub_byte(MASK, "uint1"),
            "indices_nonzero_data": sub_byte(RNG.integers(0, 8, KEPT), "uint3"),
            "lut": RNG.standard_normal((2, 1, 8, 1)).astype(np.float32)}),
        "sparse_blockwise": ("iOS18", "constexpr_sparse_blockwise_shift_scale", {
            "data_mask": sub_byte(MASK, "uint1"), "nonzero_data": BYTES[MASK != 0], "scale": SCALE}),
    }  # fmt: skip


def test_compressed_constants_are_expanded_as_coremltools_does(tmp_path):
    from coremltools.converters.mil import Builder as mb

    cases, seen = constants(), set()
    for opset in ("iOS16", "iOS18"):
        expected: dict[str, np.ndarray] = {}

        def body(given: dict[str, Any], opset: str = opset, expected: dict[str, np.ndarray] = expected) -> list[Any]:
            outputs = []
            for name, (target, kind, params) in cases.items():
                if target == opset:
                    made = as_results(getattr(mb, kind)(**params))
                    expected[name] = as_results(made[0].op.materialized_val_inference())[-1]
                    if len(made) > 1:  # values that a mask keeps are of use only when they are put in their places
                        made = (mb.constexpr_sparse_to_dense(nonzero_data=made[1], mask=made[0]),)
                        dense = np.zeros(MASK.shape, np.float32)
                        dense[MASK != 0] = expected[name]
                        expected[name] = dense
                    outputs.append(mb.add(x=given["zero"], y=made[0], name=name))
            return outputs

        path = save(tmp_path / f"{opset}.mlpackage", {"zero": np.zeros(1, np.float32)}, body, opset)
        seen |= {kind for target, kind, _ in cases.values() if target == opset}
        with Session(path) as session:
            found = session.run({"zero": np.zeros(1, np.float32)})
        assert set(found) == set(expected)
        for name, right in expected.items():
            np.testing.assert_array_equal(found[name], right, err_msg=name)
    assert seen == {name for name in compression.OPERATORS if name.startswith("constexpr_")}
