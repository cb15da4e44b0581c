"""``.mlpackage`` folders: read as coremltools wrote them, refused where damaged, cut short or of another kind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.runtimes.mil_reference import package
from edgeopt.runtimes.mil_reference.program import Constant, OtherType, Reference, TensorType, operations
from edgeopt.runtimes.mil_reference.weights import DTYPES, NUMPY_DTYPES, WeightFile, packed_bytes, unpack

ct = pytest.importorskip("coremltools")
WEIGHTS = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
INDICES = np.random.default_rng(1).integers(0, 16, (8, 8, 3, 3))
MODEL = "Data/com.apple.CoreML/model.mlmodel"
BLOBS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A palettized convolution with an image input, a flexible second input, labels and metadata."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    @mb.program(input_specs=[mb.TensorSpec((1, 3, 16, 16)), mb.TensorSpec((1, 8))], opset_version=ct.target.iOS18)
    def program(image, bias):
        x = mb.relu(x=mb.conv(x=image, weight=WEIGHTS, pad_type="same", name="first"))
        lut = np.arange(16, dtype=np.float32).reshape(1, 1, 1, 1, 16, 1)
        indices = INDICES.astype(types.string_to_nptype("uint4"))
        weight = mb.constexpr_lut_to_dense(indices=indices, lut=lut, name="weight")
        x = mb.reduce_mean(x=mb.conv(x=x, weight=weight), axes=[2, 3])
        return mb.softmax(x=mb.add(x=x, y=bias), name="scores")

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        inputs=[
            ct.ImageType("image", (1, 3, 16, 16), scale=1 / 127.5, bias=[-1, -1, -1], color_layout=ct.colorlayout.RGB),
            ct.TensorType("bias", (1, 8)),
        ],
        classifier_config=ct.ClassifierConfig([f"class {i}" for i in range(8)]),
        skip_model_load=True,
    )
    model.user_defined_metadata["edgeopt.tensors"] = "{}"
    model.author = "somebody"
    path = tmp_path_factory.mktemp("mil") / "model.mlpackage"
    model.save(str(path))
    return path


def test_what_coremltools_wrote_is_read(written):
    found = package.read(written)
    assert (found.specification_version, found.deployment_target) == (9, "iOS18")
    assert found.metadata.author == "somebody"
    assert found.metadata.user_defined["edgeopt.tensors"] == "{}"
    assert list(found.functions) == [found.default_function] == ["main"]
    image, bias = found.main.features_in
    assert (image.kind, image.color, image.shape, image.dtype) == ("image", "RGB", (16, 16), "uint8")
    assert (bias.kind, bias.dtype, bias.shape) == ("array", "float32", (1, 8))
    assert [feature.kind for feature in found.main.features_out] == ["string", "dictionary"]
    assert found.main.predicted_feature == "classLabel"
    by_type = {operation.type: operation for operation in operations(found.main.block)}
    conv = next(operation for operation in operations(found.main.block) if operation.name == "first")
    assert conv.outputs[0].type == TensorType("float32", (1, 8, 16, 16))
    assert isinstance(conv.inputs["weight"][0], Reference)
    classify = by_type["classify"]
    assert classify.outputs[1].type == OtherType("dictionary", (TensorType("string", ()), TensorType("float64", ())))
    constants = {
        operation.outputs[0].name: operation.attributes["val"]
        for operation in operations(found.main.block)
        if operation.type == "const"
    }
    assert np.array_equal(constants[conv.inputs["weight"][0].name].value, WEIGHTS)
    assert constants[conv.inputs["pad_type"][0].name].python() == "same"
    indices = by_type["constexpr_lut_to_dense"].inputs["indices"][0]
    assert isinstance(indices, Constant)
    assert indices.type == TensorType("uint4", INDICES.shape)
    assert np.array_equal(indices.value, INDICES)
    assert indices.stored_bytes == INDICES.size // 2
    assert found.weight_bytes == (written / BLOBS).stat().st_size


def test_reading_imports_no_framework(written):
    code = (
        "import sys; from pathlib import Path; from edgeopt.runtimes.mil_reference import package;"
        f"package.read(Path({str(written)!r}));"
        "assert not {'coremltools', 'torch'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_messages_are_loaded_beside_coremltools(written):
    code = (
        "from pathlib import Path; from edgeopt.runtimes.mil_reference import package;"
        f"path = Path({str(written)!r}); first = package.read(path);"
        "import types, sys, importlib.util as u;"
        "alone = types.ModuleType('coremltools');"
        "alone.__path__ = u.find_spec('coremltools').submodule_search_locations;"
        "sys.modules['coremltools'] = alone;"  # as coremltools would, without its seven seconds
        "from coremltools.proto import Model_pb2, MIL_pb2;"
        "spec = Model_pb2.Model(); spec.mlProgram.version = 1; assert isinstance(spec.mlProgram, MIL_pb2.Program);"
        "assert package.read(path).metadata == first.metadata"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_coremltools_the_extra_is_named(written):
    code = (
        "import sys; sys.modules['coremltools'] = None\n"
        "from pathlib import Path; from edgeopt.runtimes.mil_reference import package\n"
        f"try: package.read(Path({str(written)!r}))\n"
        "except ImportError as error: assert 'edgeopt[coreml]' in str(error), error\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("dtype", [name for name in DTYPES.values() if name in NUMPY_DTYPES])
def test_every_blob_dtype_is_read_as_coremltools_writes_it(dtype, tmp_path):
    from coremltools.converters.mil.mil import types
    from coremltools.libmilstoragepython import _BlobStorageWriter

    kind = NUMPY_DTYPES[dtype]
    rng = np.random.default_rng(3)
    if kind.kind == "f":
        blobs = [rng.standard_normal(size).astype(kind) for size in (1, 37)]
    else:
        bits = int("".join(filter(str.isdigit, dtype)))
        low = -(2 ** (bits - 1)) if dtype.startswith("int") else 0
        blobs = [rng.integers(low, low + 2**bits, size).astype(kind) for size in (1, 37)]
    writer = _BlobStorageWriter(str(tmp_path / "weight.bin"))
    method = {"float32": "write_float_data", "float16": "write_fp16_data"}.get(dtype, f"write_{dtype}_data")
    offsets = []
    for blob in blobs:
        given = blob.view(np.uint16) if dtype == "float16" else blob
        sub_byte = kind.itemsize == 1 and dtype not in ("int8", "uint8")
        offsets.append(getattr(writer, method)(given.astype(types.string_to_nptype(dtype)) if sub_byte else given))
    del writer
    weights = WeightFile.read(tmp_path / "weight.bin")
    for offset, blob in zip(offsets, blobs, strict=True):
        found = weights.values(offset, dtype, blob.size)
        assert found.dtype == kind
        assert np.array_equal(found, blob)
        with pytest.raises(ValueError, match=f"values of {dtype} take"):
            weights.values(offset, dtype, blob.size + 8)
        with pytest.raises(ValueError, match="the program says bool"):
            weights.values(offset, "bool", blob.size)


@given(st.sampled_from(["int4", "uint1", "uint2", "uint3", "uint4", "uint6"]), st.data())
def test_unpacking_undoes_packing(dtype, data):
    bits = int(dtype[-1])
    low = -(2 ** (bits - 1)) if dtype.startswith("int") else 0
    values = data.draw(st.lists(st.integers(low, low + 2**bits - 1), max_size=40))
    stream = sum((value & (2**bits - 1)) << (bits * i) for i, value in enumerate(values))
    packed = stream.to_bytes(packed_bytes(len(values), dtype), "little")
    assert unpack(packed, len(values), dtype).tolist() == values


@pytest.fixture
def copied(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy.mlpackage"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_cut_short_is_refused(copied, data):
    name = data.draw(st.sampled_from([MODEL, BLOBS]))
    whole = (copied / name).read_bytes()
    end = len(whole)
    if name == BLOBS:  # what follows the last blob is padding
        end -= len(whole) - len(whole.rstrip(b"\0"))
    kept = data.draw(st.integers(0, end - 1))
    (copied / name).write_bytes(whole[:kept])
    try:
        with pytest.raises(ValueError, match=r"cut short|damaged|holds no model") as refused:
            package.read(copied)
        assert name in str(refused.value)
    finally:
        (copied / name).write_bytes(whole)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_byte_is_refused_or_harmless(copied, data):
    name = data.draw(st.sampled_from([MODEL, BLOBS]))
    whole = bytearray((copied / name).read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    before, whole[place] = bytes(whole), data.draw(st.integers(0, 255))
    (copied / name).write_bytes(whole)
    try:
        package.read(copied)
    except ValueError as error:
        assert str(copied) in str(error)
    finally:
        (copied / name).write_bytes(before)


def test_what_is_no_package_is_refused(copied, tmp_path):
    with pytest.raises(ValueError, match="there is nothing here"):
        package.read(tmp_path / "absent.mlpackage")
    (tmp_path / "file.mlpackage").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a folder"):
        package.read(tmp_path / "file.mlpackage")
    manifest = copied / "Manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"Manifest.json: damaged or cut short"):
        package.read(copied)
    manifest.write_text("{}")
    with pytest.raises(ValueError, match="does not say where the model is"):
        package.read(copied)
    outside = json.loads(text)
    outside["itemInfoEntries"][outside["rootModelIdentifier"]]["path"] = "../../elsewhere"
    manifest.write_text(json.dumps(outside))
    with pytest.raises(ValueError, match="outside of the package"):
        package.read(copied)
    manifest.write_text(text)
    (copied / BLOBS).unlink()
    with pytest.raises(ValueError, match=r"weight.bin: the weight file cannot be read"):
        package.read(copied)
    (copied / MODEL).unlink()
    with pytest.raises(ValueError, match="missing; the manifest names it"):
        package.read(copied)


def test_a_neural_network_is_refused_by_name(copied):
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.neuralNetwork.layers.add().name = "x"
    (copied / MODEL).write_bytes(spec.SerializeToString())
    with pytest.raises(ValueError, match="'neuralNetwork', not an ML program"):
        package.read(copied)
