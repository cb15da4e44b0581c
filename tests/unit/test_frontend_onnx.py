"""ONNX files as they come: old, open, split, broken, hostile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.errors import EdgeoptError, ModelError, UnsupportedOperator
from edgeopt.frontends.onnx import load_onnx
from edgeopt.frontends.source_lines import user_line
from edgeopt.graph.model import place, serialise
from edgeopt.runtimes.onnxruntime import Session
from tests.unit.canonical_form import assert_same_function, canonical, operators

W = np.random.default_rng(3).normal(0, 1, (4, 3, 1, 1)).astype(np.float32)
CONV = "g (float[1,3,4,4] x) => (float[1,4,4,4] y) { y = Conv(x, w) }"


def model_of(body: str, opset: int = 20, ir_version: int = 8, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{body}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return model


def write(folder: Path, body: str, **options: object) -> Path:
    path = folder / "net.onnx"
    onnx.save(model_of(body, **options), path)  # type: ignore[arg-type]
    return path


def test_initializers_that_are_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    body = "g (float[1,3,4,4] x, float[4,3,1,1] w) => (float[1,4,4,4] y) { y = Conv(x, w) }"
    path = write(tmp_path, body, opset=9, ir_version=3, w=W)
    imported = load_onnx(path)
    assert [spec.name for spec in imported.signature.inputs] == ["x"]
    assert imported.kind == "onnx"
    assert_same_function(path, canonical(path))


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23])
def test_every_opset_is_lifted(tmp_path: Path, opset: int) -> None:
    pad = "Pad<pads=[0,0,1,1,0,0,1,1]>(c)" if opset < 11 else "Pad(c, pads)"
    mean = "ReduceMean<axes=[2,3], keepdims=0>(n)" if opset < 18 else "ReduceMean<keepdims=0>(n, axes)"
    body = f"""g (float[B,3,4,4] x) => (float[B,4] y) {{
        c = Conv(x, w)  p = {pad}  n = BatchNormalization(p, s, b, s, s)  m = {mean}  y = Softmax<axis=1>(m) }}"""
    constants = {"w": W, "s": np.ones(4, np.float32), "b": np.zeros(4, np.float32)}
    if opset >= 11:
        constants["pads"] = np.asarray([0, 0, 1, 1, 0, 0, 1, 1])
    if opset >= 18:
        constants["axes"] = np.asarray([2, 3])
    path = write(tmp_path, body, opset=opset, **constants)
    model = canonical(path)
    assert operators(model).count("Conv") >= 1
    assert_same_function(path, model)


def test_a_batch_that_alone_is_open_becomes_one(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[N,3,4,4] x) => (float[N,4,4,4] y) { y = Conv(x, w) }", w=W)
    assert load_onnx(path).signature.inputs[0].shape == (1, 3, 4, 4)
    bound = load_onnx(path, {"x": (5, 3, 4, 4)})
    assert bound.signature.outputs[0].shape == (5, 4, 4, 4)
    assert bound.digest != load_onnx(path).digest


def test_open_sizes_are_bound_or_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[N,3,H,W] x) => (float[N,4,H,W] y) { y = Conv(x, w) }", w=W)
    with pytest.raises(ModelError, match=r"\[N, 3, H, W\]: sizes are left open") as caught:
        load_onnx(path)
    assert "--input x=" in str(caught.value)
    assert load_onnx(path, {"x": (1, 3, 8, 6)}).signature.outputs[0].shape == (1, 4, 8, 6)


def test_one_symbol_is_one_size(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[N,S] a, float[N,S] b) => (float[N,S] y) { y = Add(a, b) }")
    assert load_onnx(path, {"a": (2, 7)}).signature.inputs[1].shape == (2, 7)
    with pytest.raises(ModelError, match="cannot be"):
        load_onnx(path, {"a": (2, 7), "b": (2, 8)})


@pytest.mark.parametrize("sizes", [(1, 3, 5, 5), (1, 3, 4), (0, 3, 4, 4), ()])
def test_another_shape_than_the_models_is_refused(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="'x'"):
        load_onnx(write(tmp_path, CONV, w=W), {"x": sizes})


def test_a_wrong_input_name_is_answered_with_the_right_one(tmp_path: Path) -> None:
    body = "g (float[1,3,4,4] image) => (float[1,4,4,4] y) { y = Conv(image, w) }"
    with pytest.raises(ModelError, match="it has 'image'") as caught:
        load_onnx(write(tmp_path, body, w=W), {"imgae": (1, 3, 4, 4)})
    assert "Did you mean 'image'" in str(caught.value)


def test_a_size_that_the_graph_contradicts(tmp_path: Path) -> None:
    body = "g (float[N,H] x) => (float[2,8] y) { y = Reshape(x, s) }"
    with pytest.raises(ModelError, match="cannot be reshaped"):
        load_onnx(write(tmp_path, body, s=np.asarray([2, 8])), {"x": (3, 5)})


def test_several_inputs_and_outputs_keep_name_and_order(tmp_path: Path) -> None:
    body = "g (float[1,4] b, float[1,4] a, int64[2] i) => (float[1,4] z, float[1,4] y) { y = Sub(a, b)  z = Abs(y) }"
    signature = load_onnx(write(tmp_path, body)).signature
    assert [(s.name, s.dtype) for s in signature.inputs] == [("b", "float32"), ("a", "float32"), ("i", "int64")]
    assert [s.name for s in signature.outputs] == ["z", "y"]


@pytest.mark.parametrize("dtype", ["double", "complex64", "float16"])
def test_inputs_of_other_dtypes_are_refused(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path, f"g ({dtype}[1,3] x) => ({dtype}[1,3] y) {{ y = Identity(x) }}")
    with pytest.raises(ModelError, match="input 'x' is"):
        load_onnx(path)


def external(folder: Path, location: str = "weights.bin") -> Path:
    model = model_of(CONV, w=W)
    path = folder / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    if location != "weights.bin":
        stored = onnx.load(path, load_external_data=False)
        for entry in stored.graph.initializer[0].external_data:
            entry.value = location if entry.key == "location" else entry.value
        path.write_bytes(stored.SerializeToString())
    return path


def test_external_data_is_read(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = canonical(path)
    assert_same_function(path, model)
    digest = load_onnx(path).digest
    (tmp_path / "weights.bin").write_bytes((W * 2).tobytes())
    assert load_onnx(path).digest != digest


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "", "a/../../secret.bin"])
def test_external_data_stays_in_the_models_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ModelError, match="outside of the model's folder"):
        load_onnx(external(folder, location))


def test_external_data_behind_a_link_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder)
    (folder / "weights.bin").rename(tmp_path / "secret.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="outside of the model's folder"):
        load_onnx(path)


def test_external_data_that_is_missing_or_short(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"\0" * 10)
    with pytest.raises(ModelError, match="ends before the weight 'w'"):
        load_onnx(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="is not there"):
        load_onnx(path)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf")])
def test_broken_weights_are_named(tmp_path: Path, value: float, word: str) -> None:
    weight = W.copy()
    weight[1, 2] = value
    with pytest.raises(ModelError, match=f"weight 'w' holds {word}: 1 of 12 values") as caught:
        load_onnx(write(tmp_path, CONV, w=weight))
    assert "Conv" in str(caught.value)


def test_infinity_as_bound_or_mask_is_no_broken_weight(tmp_path: Path) -> None:
    body = "g (float[1,3] x) => (float[1,3] y) { a = Add(x, mask)  c = Clip(a, low, high)  y = Softmax(c) }"
    infinity = np.float32(np.inf)
    mask = np.asarray([0, -np.inf, 0], np.float32)
    path = write(tmp_path, body, mask=mask, low=-infinity, high=infinity)
    assert_same_function(path, canonical(path))


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    write(tmp_path, CONV, w=W)
    with pytest.raises(ModelError, match="no such file") as caught:
        load_onnx(tmp_path / "nett.onnx")
    assert "Did you mean 'net.onnx'" in str(caught.value)
    with pytest.raises(ModelError, match="folder"):
        load_onnx(tmp_path)
    for content in (b"", b"<html>not found</html>", b"\x80\x02}q\x00.", b"PK\x03\x04" + b"\0" * 40, b"\0" * 64):
        (tmp_path / "foreign.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=r"empty|no ONNX model"):
            load_onnx(tmp_path / "foreign.onnx")


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_refused_or_read_but_never_a_crash(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(model_of(CONV, w=W).SerializeToString())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    try:
        imported = load_onnx(path)
    except EdgeoptError as error:
        assert error.exit_code == 2
        assert str(path) in str(error)
    else:
        assert serialise(imported.model)


def test_operators_outside_of_onnx_are_named(tmp_path: Path) -> None:
    model = model_of(CONV, w=W)
    model.graph.node[0].domain, model.graph.node[0].name = "com.microsoft", "fused"
    model.opset_import.add(domain="com.microsoft", version=1)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedOperator, match=r"com\.microsoft") as caught:
        load_onnx(path)
    assert "fused" in str(caught.value)
    model.graph.node[0].domain, model.graph.node[0].op_type = "", "Convolve"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedOperator, match="no operator Convolve"):
        load_onnx(path)


def test_shapes_that_depend_on_data_are_refused(tmp_path: Path) -> None:
    body = "g (float[8] x) => (int64[1,n] y) { b = Cast<to=9>(x)  y = NonZero(b) }"
    with pytest.raises(UnsupportedOperator, match="depends on the data") as caught:
        load_onnx(write(tmp_path, body))
    assert "NonZero" in str(caught.value)


def test_opsets_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="opset 8"):
        load_onnx(write(tmp_path, "g (float[3] x) => (float[3] y) { y = Relu(x) }", opset=8))


@pytest.mark.parametrize(
    ("body", "opset", "name"),
    [
        ("y, m, v = BatchNormalization<training_mode=1>(x, s, s, s, s)", 17, "BatchNormalization"),
        ("y, m, v, a, b = BatchNormalization(x, s, s, s, s)", 11, "BatchNormalization"),
        ("r = Constant<value = float {0.5}>()  t = Constant<value = bool {1}>()  y = Dropout(x, r, t)", 13, "Dropout"),
    ],
)
def test_a_model_exported_in_train_mode_is_refused(tmp_path: Path, body: str, opset: int, name: str) -> None:
    path = write(
        tmp_path, f"g (float[2,3,4] x) => (float[2,3,4] y) {{ {body} }}", opset=opset, s=np.ones(3, np.float32)
    )
    with pytest.raises(ModelError, match=f"train mode: .*{name}"):
        load_onnx(path)


def test_the_source_is_the_file_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path, CONV, w=W)
    imported = load_onnx(path)
    feeds = [{"x": np.full((1, 3, 4, 4), k, np.float32)} for k in range(3)]
    with Session(path) as session:
        for feed, outputs in zip(feeds, imported.source.run(iter(feeds)), strict=True):
            np.testing.assert_array_equal(outputs["y"], session.run(feed)["y"])
    with pytest.raises(ModelError, match="cannot run the original"):
        list(imported.source.run([{"x": np.zeros((1, 3, 9), np.float32)}]))


def test_functions_are_inlined(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
        g (float[1,4] x) => (float[1,4] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["" : 18]>
        twice (a) => (b) { b = Add(a, a) }"""
    path = tmp_path / "net.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    model = canonical(path)
    assert operators(model) == ["Add"]
    assert_same_function(path, model)


def test_the_users_line_is_found_in_a_stack_trace() -> None:
    trace = (
        'File "/home/u/net.py", line 7, in forward\n    return self.head(x)\n'
        'File "/usr/lib/site-packages/torch/nn/modules/linear.py", line 9, in forward\n    return F.linear(x)\n'
    )
    assert user_line(trace) == "/home/u/net.py:7: return self.head(x)"
    library = trace.replace("/home/u/net.py", "/usr/lib/site-packages/models/net.py")
    assert user_line(library) == "/usr/lib/site-packages/models/net.py:7: return self.head(x)"
    assert user_line(trace.replace("/home/u/net.py", "/usr/lib/site-packages/torch/x.py")) is None
    assert user_line("") is None


def test_of_exporters_notes_only_the_users_line_stays(tmp_path: Path) -> None:
    model = model_of(CONV, w=W)
    model.producer_name, model.doc_string = "pytorch", "/home/somebody/secret"
    model.graph.node[0].doc_string = "/home/somebody/else"
    note = model.graph.node[0].metadata_props.add()
    note.key, note.value = "pkg.torch.onnx.stack_trace", 'File "/src/net.py", line 7, in f\n    y = conv(x)\n'
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    imported = load_onnx(path)
    assert set(imported.where) == {node.name for node in imported.model.graph}
    assert place(imported.model.graph[0]) == "node 'Conv_y' (Conv), /src/net.py:7: y = conv(x)"
    assert b"/home/" not in serialise(imported.model)
    assert b"stack_trace" not in serialise(imported.model)


def test_the_users_line_is_in_the_message_of_a_pass(tmp_path: Path) -> None:
    body = "g (float[1,3,4,4] x, float[3,3,1,1] w) => (float[1,3,4,4] y) { y = Conv(x, w) }"
    model = model_of(body)
    note = model.graph.node[0].metadata_props.add()
    note.key, note.value = "pkg.torch.onnx.stack_trace", 'File "/src/net.py", line 7, in f\n    y = conv(x)\n'
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedOperator, match="computed from the input") as caught:
        canonical(path)
    assert "/src/net.py:7: y = conv(x)" in str(caught.value)
