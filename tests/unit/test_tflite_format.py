"""TFLite files: written and read again, refused where broken, cut into segments."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.errors import ModelError
from edgeopt.formats import tflite
from edgeopt.runtimes import litert
from edgeopt.targets.tflite.draft import options


def two_operators(dtype: str = "float32") -> tflite.Model:
    """x → MUL by a constant → middle → ADD of the constant → y, all (1, 4)."""
    grid = (np.ones(1, np.float32), np.zeros(1, np.int64)) if dtype == "int8" else (None, None)
    model = tflite.Model(description="test")
    for name in ("x", "middle", "y"):
        model.tensors.append(tflite.Tensor(name, (1, 4), dtype, None, *grid))
    two = np.full((1, 4), 2, dtype)
    model.tensors.append(tflite.Tensor("two", (1, 4), dtype, two, *grid))
    model.tensors.append(tflite.Tensor("also_two", (1, 4), dtype, two.copy(), *grid))
    version = 2 if dtype == "int8" else 1
    model.operators.append(tflite.Operator("MUL", (0, 3), (1,), options("Mul"), version))
    model.operators.append(tflite.Operator("ADD", (1, 4), (2,), options("Add"), version))
    model.inputs, model.outputs = [0], [2]
    model.signature_inputs, model.signature_outputs = {"image": 0}, {"result": 2}
    model.metadata = {"edgeopt.labels": b'["a"]'}
    return model


def test_what_is_written_is_read_again():
    model = tflite.read(tflite.write(two_operators()))
    assert [tensor.name for tensor in model.tensors] == ["x", "middle", "y", "two", "also_two"]
    assert [operator.code for operator in model.operators] == ["MUL", "ADD"]
    assert np.array_equal(model.tensors[3].data, np.full((1, 4), 2, np.float32))
    assert (model.signature_inputs, model.signature_outputs) == ({"image": 0}, {"result": 2})
    assert model.metadata == {"edgeopt.labels": b'["a"]'}
    assert tflite.write(model) == tflite.write(tflite.read(tflite.write(model)))


def test_litert_runs_it_by_signature_names():
    with litert.Session(tflite.write(two_operators())) as session:
        x = np.arange(4, dtype=np.float32).reshape(1, 4)
        assert session.inputs["image"] == litert.TensorInfo("float32", (1, 4))
        assert np.array_equal(session.run({"image": x})["result"], 2 * x + 2)
        assert session.partitions() == 1
        assert session.undelegated() == ()
        with pytest.raises(ValueError, match="no input named"):
            session.run({"picture": x})
        with pytest.raises(ValueError, match="Dimension mismatch"):
            session.run({"image": x[:, :2]})
    with litert.Session(tflite.write(two_operators()), delegate=False) as session:
        assert session.partitions() == 0
        assert session.undelegated() == ("MUL", "ADD")


def test_equal_constants_are_stored_once_and_aligned():
    big = two_operators()
    big.tensors[3].data = big.tensors[4].data = np.arange(4000, dtype=np.float32).reshape(1, -1)
    big.tensors[3].shape = big.tensors[4].shape = (1, 4000)
    data = tflite.write(big)
    assert len(data) < 2 * 16000
    assert data.index(big.tensors[3].data.tobytes()) % tflite.ALIGNMENT == 0


def test_a_broken_file_is_refused_and_nothing_else_happens():
    whole = tflite.write(two_operators("int8"))
    random = np.random.default_rng(0)
    refused = 0
    for attempt in range(600):
        data = bytearray(whole)
        if attempt % 2:
            data = data[: random.integers(8, len(whole))]
        else:
            for at in random.integers(8, len(whole), 12):
                data[at] = random.integers(256)
        try:
            tflite.read(bytes(data))
        except ModelError:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize("data", [b"", b"short", b"x" * 100, b"PK\x03\x04" + b"\x00" * 60])
def test_what_is_no_tflite_is_refused(data):
    with pytest.raises(ModelError, match="not a TFLite file"):
        tflite.read(data)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        tflite.read(tmp_path / "none.tflite")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.operators.__setitem__(0, tflite.Operator("MUL", (0, 99), (1,))), "reads tensor 99"),
        (lambda m: m.operators.__setitem__(0, tflite.Operator("MUL", (0, 3), (3,))), "which is taken"),
        (lambda m: m.outputs.__setitem__(0, 77), "refers to tensor 77"),
        (lambda m: setattr(m.tensors[3], "axis", 5) or setattr(m.tensors[3], "scale", np.ones(4, np.float32))
         or setattr(m.tensors[3], "zero_point", np.zeros(4, np.int64)), "channels on axis 5"),
        (lambda m: setattr(m.tensors[3], "data", np.zeros(3, np.float32)), "broken or truncated"),
    ],
)  # fmt: skip
def test_an_inconsistent_file_is_refused(change, message):
    model = two_operators()
    change(model)
    with pytest.raises(ModelError, match=message):
        tflite.read(tflite.write(model))


def test_a_cut_runs_segments_side_by_side():
    cut = tflite.cut(two_operators("int8"), ["middle", "y", "nowhere"])
    assert cut.missing == ("nowhere",)
    assert (cut.produced, cut.consumed) == ({"middle": "middle", "y": "result"}, {"middle": "middle__in"})
    with litert.Session(cut.data) as session:
        x = np.asarray([[1, 2, 3, 4]], np.int8)
        found = session.run({"image": x, "middle__in": np.asarray([[50, 51, 52, 53]], np.int8)})
    assert found["middle"].tolist() == [[2, 4, 6, 8]]
    assert found["result"].tolist() == [[52, 53, 54, 55]]


def test_precision_is_that_of_activations_and_stored_weights():
    counts = tflite.operator_counts(two_operators("int8"))
    assert counts == {"int8": {"MUL": 1, "ADD": 1}}
    assert tflite.operator_counts(two_operators()) == {"fp32": {"MUL": 1, "ADD": 1}}
    assert tflite.constant_bytes(two_operators()) == {"two": 16, "also_two": 16}
