"""Each pattern of the canonical form, on the smallest graph that shows it; the function must stay the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgeopt.errors import ModelError, UnsupportedOperator
from edgeopt.graph.model import constant, shape
from tests.unit.canonical_form import assert_same_function, canonical, operators

RNG = np.random.default_rng(7)


def weights(*sizes: int, scale: float = 0.5) -> np.ndarray:
    return RNG.normal(0, scale, sizes).astype(np.float32)


def write(folder: Path, body: str, opset: int = 20, **constants: np.ndarray) -> Path:
    """``body`` in ONNX's text form, with arrays as initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{body}')
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def check(path: Path, expected: list[str], **options: float) -> object:
    model = canonical(path)
    assert operators(model) == expected
    assert_same_function(path, model, **options)
    return model


def test_batch_norm_and_channel_constants_fold_into_conv(tmp_path: Path) -> None:
    body = """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
        c = Conv<auto_pad="SAME_UPPER">(x, w)
        n = BatchNormalization(c, gamma, beta, mean, var)
        m = Mul(n, k)
        y = Add(s, m) }"""
    path = write(
        tmp_path, body, w=weights(4, 3, 3, 3), gamma=weights(4), beta=weights(4), mean=weights(4),
        var=np.abs(weights(4)) + 0.1, k=weights(4, 1, 1), s=weights(1, 4, 1, 1),
    )  # fmt: skip
    model = check(path, ["Conv"])
    assert model.graph[0].attributes["pads"].as_ints() == (1, 1, 1, 1)
    assert set(model.graph.initializers) == {"w", f"{model.graph[0].name}_bias"}


@pytest.mark.parametrize("group", [1, 2])
def test_batch_norm_folds_into_transposed_conv(tmp_path: Path, group: int) -> None:
    body = f"""g (float[1,4,5,5] x) => (float[1,6,11,11] y) {{
        c = ConvTranspose<strides=[2,2], group={group}>(x, w)
        y = BatchNormalization(c, gamma, beta, mean, var) }}"""
    path = write(
        tmp_path, body, w=weights(4, 6 // group, 3, 3), gamma=weights(6), beta=weights(6), mean=weights(6),
        var=np.abs(weights(6)) + 0.1,
    )  # fmt: skip
    check(path, ["ConvTranspose"])


def test_batch_norm_alone_is_a_depthwise_conv(tmp_path: Path) -> None:
    body = """g (float[1,4,5,5] x) => (float[1,4,5,5] y) {
        r = Relu(x)  n = BatchNormalization(r, gamma, beta, mean, var)  y = Relu(n) }"""
    path = write(tmp_path, body, gamma=weights(4), beta=weights(4), mean=weights(4), var=np.abs(weights(4)) + 0.1)
    check(path, ["Relu", "Conv", "Relu"])


def test_a_value_that_others_read_keeps_its_batch_norm(tmp_path: Path) -> None:
    body = """g (float[1,3,4,4] x) => (float[1,3,4,4] y, float[1,3,4,4] c) {
        c = Conv(x, w)  y = Mul(c, k) }"""
    path = write(tmp_path, body, w=weights(3, 3, 1, 1), k=weights(1, 3, 1, 1))
    check(path, ["Conv", "Mul"])


def test_matmul_of_rank_3_with_bias_is_gemm(tmp_path: Path) -> None:
    body = """g (float[2,5,8] x) => (float[2,5,4] y) { m = MatMul(x, w)  y = Add(b, m) }"""
    path = write(tmp_path, body, w=weights(8, 4), b=weights(4))
    model = check(path, ["Reshape", "Gemm", "Reshape"])
    assert shape(model.graph[1].inputs[1]) == (4, 8)
    assert model.graph[1].inputs[2].name == "b"


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("r = Relu(m)", ["Relu"]),
        ("r = Clip(m, zero, six)", ["Clip"]),
        ("s = Sigmoid(m)  r = Mul(m, s)", ["Sigmoid", "Mul"]),
    ],
)
def test_an_activation_stands_directly_behind_its_gemm(tmp_path: Path, activation: str, expected: list[str]) -> None:
    body = f"g (float[2,5,8] x) => (float[2,5,6] y) {{ m = MatMul(x, w)  {activation}  y = MatMul(r, v) }}"
    path = write(tmp_path, body, w=weights(8, 4), v=weights(4, 6), zero=np.float32(0), six=np.float32(1.5))
    check(path, ["Reshape", "Gemm", *expected, "Gemm", "Reshape"])


@pytest.mark.parametrize(
    ("attributes", "a", "b", "c"),
    [
        ("", (3, 4), (4, 5), (5,)),
        ("<transB=1, alpha=0.5, beta=2.0>", (3, 4), (5, 4), (1, 5)),
        ("<transA=1>", (4, 3), (4, 5), (1,)),
        ("<beta=3.0>", (3, 4), (4, 5), (3, 5)),
        ("", (3, 4), (4, 5), None),
    ],
)
def test_gemm_in_all_its_forms(tmp_path: Path, attributes: str, a: tuple, b: tuple, c: tuple | None) -> None:
    body = f"g (float[{a[0]},{a[1]}] x) => (float[3,5] y) {{ y = Gemm{attributes}(x, w{', c' if c else ''}) }}"
    path = write(tmp_path, body, w=weights(*b), **({"c": weights(*c)} if c else {}))
    model = canonical(path)
    assert operators(model).count("Gemm") == 1
    assert_same_function(path, model)


def test_gemm_of_activations_is_matmul(tmp_path: Path) -> None:
    body = """g (float[3,4] a, float[5,4] b, float[3,5] c) => (float[3,5] y) {
        y = Gemm<transB=1, alpha=0.5, beta=2.0>(a, b, c) }"""
    check(write(tmp_path, body), ["Transpose", "MatMul", "Mul", "Mul", "Add"])


def test_scalars_move_behind_matmul(tmp_path: Path) -> None:
    body = """g (float[1,2,4,8] a, float[1,2,8,4] b) => (float[1,2,4,4] y) {
        p = Mul(s, a)  q = Div(b, t)  y = MatMul(p, q) }"""
    path = write(tmp_path, body, s=np.float32(0.25), t=np.asarray([3.0], np.float32))
    model = check(path, ["MatMul", "Mul"])
    assert float(constant(model.graph[1].inputs[1])) == pytest.approx(0.25 / 3)


def test_tied_weights_are_copied(tmp_path: Path) -> None:
    body = """g (float[1,3,4,4] x) => (float[1,3,4,4] y) { a = Conv(x, w, b)  r = Relu(a)  y = Conv(r, w, b) }"""
    path = write(tmp_path, body, w=weights(3, 3, 1, 1), b=weights(3))
    model = check(path, ["Conv", "Relu", "Conv"])
    assert set(model.graph.initializers) == {"w", "w__2", "b", "b__2"}


@pytest.mark.parametrize(
    "pool",
    [
        "p = ReduceMean<keepdims=0>(x, axes)",
        "q = ReduceMean(x, axes) p = Flatten(q)",
        "q = AveragePool<kernel_shape=[6,7]>(x) p = Squeeze(q, axes)",
        "q = GlobalAveragePool(x) p = Reshape(q, target)",
    ],
)
def test_every_mean_over_the_image_is_one_pool(tmp_path: Path, pool: str) -> None:
    body = f"g (float[1,4,6,7] x) => (float[1,3] y) {{ {pool}  y = MatMul(p, w) }}"
    path = write(tmp_path, body, w=weights(4, 3), axes=np.asarray([-1, 2]), target=np.asarray([0, -1]))
    check(path, ["GlobalAveragePool", "Reshape", "Gemm"])


def test_conv_head_on_one_pixel_is_gemm(tmp_path: Path) -> None:
    body = """g (float[1,8,4,4] x) => (float[1,5] y) {
        p = GlobalAveragePool(x)  c = Conv(p, w)  h = HardSwish(c)  d = Conv(h, v, b)  y = Flatten(d) }"""
    path = write(tmp_path, body, w=weights(6, 8, 1, 1), v=weights(5, 6, 1, 1), b=weights(5))
    check(path, ["GlobalAveragePool", "Reshape", "Gemm", "HardSwish", "Gemm"])


@pytest.mark.parametrize("op", ["Conv", "AveragePool<count_include_pad=1, kernel_shape=[3,3]>"])
def test_zero_padding_moves_into_the_window(tmp_path: Path, op: str) -> None:
    operands = "p, w" if op == "Conv" else "p"
    body = f"g (float[1,3,6,6] x) => (float[1,3,h,v] y) {{ p = Pad(x, pads)  y = {op}({operands}) }}"
    path = write(tmp_path, body, w=weights(3, 3, 3, 3), pads=np.asarray([0, 0, 1, 0, 0, 0, 2, 1]))
    model = check(path, [op.partition("<")[0]])
    assert model.graph[0].attributes["pads"].as_ints() == (1, 0, 2, 1)


@given(
    size=st.integers(5, 12), kernel=st.integers(1, 4), stride=st.integers(1, 3), pad=st.integers(0, 1),
    op=st.sampled_from(["MaxPool", "AveragePool"]), how=st.sampled_from(["ceil_mode=1", 'auto_pad="SAME_LOWER"', ""]),
)  # fmt: skip
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_explicit_pads_say_what_ceil_and_same_said(
    tmp_path: Path, size: int, kernel: int, stride: int, pad: int, op: str, how: str
) -> None:
    assume(pad < kernel and not (how.startswith("auto") and (pad or kernel < stride)))  # ONNX Runtime runs no others
    pads = "" if how.startswith("auto") else f", pads=[{pad},{pad},{pad},{pad}]"
    extra = f", {how}" if how else ""
    body = f"""g (float[1,2,{size},{size}] x) => (float[1,2,h,w] y) {{
        r = Relu(x)  y = {op}<kernel_shape=[{kernel},{kernel}], strides=[{stride},{stride}]{pads}{extra}>(r) }}"""
    path = write(tmp_path, body)
    model = canonical(path)
    assert_same_function(path, model, samples=1)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("d = Div(x, root)  e = Erf(d)  a = Add(e, one)  m = Mul(x, a)  y = Mul(m, half)", ["Gelu"]),
        ("h = Mul(half, x)  d = Mul(inv, x)  e = Erf(d)  a = Add(one, e)  y = Mul(h, a)", ["Gelu"]),
        (
            "p = Pow(x, three)  q = Mul(p, k)  s = Add(x, q)  u = Mul(s, pi)  t = Tanh(u)  a = Add(t, one)"
            "  h = Mul(x, half)  y = Mul(h, a)",
            ["Gelu"],
        ),
        ("a = Add(x, three)  c = Clip(a, zero, six)  m = Mul(x, c)  y = Div(m, six)", ["HardSwish"]),
        ("a = Add(x, three)  c = Clip(a, zero, six)  d = Div(c, six)  y = Mul(x, d)", ["HardSwish"]),
        ("h = HardSigmoid<alpha=0.16666667, beta=0.5>(x)  y = Mul(h, x)", ["HardSwish"]),
        ("a = Add(x, three)  c = Clip(a, zero, six)  y = Div(c, six)", ["HardSigmoid"]),
        ("a = Max(x, zero)  y = Min(a, six)", ["Clip"]),
        ("y = Clip(x, zero)", ["Relu"]),
        ("y = Max(zero, x)", ["Relu"]),
        ("y = PRelu(x, slopes)", ["LeakyRelu"]),
        ("s = Sigmoid(x)  y = Mul(s, x)", ["Sigmoid", "Mul"]),
        ("a = Add(x, one)  y = Mul(a, half)", ["Add", "Mul"]),
        ("a = Add(x, three)  c = Clip(a, zero, six)  y = Mul(x, c)", ["Add", "Clip", "Mul"]),
    ],
)
def test_activations_are_found_in_their_parts(tmp_path: Path, body: str, expected: list[str]) -> None:
    scalars = {
        "root": np.sqrt(2), "inv": 1 / np.sqrt(2), "one": 1, "half": 0.5, "three": 3, "six": 6, "zero": 0,
        "k": 0.044715,
        "pi": np.sqrt(2 / np.pi),
    }  # fmt: skip
    constants = {name: np.asarray(value, np.float32) for name, value in scalars.items()}
    path = write(
        tmp_path,
        f"g (float[1,3,4,4] x) => (float[1,3,4,4] y) {{ {body} }}",
        slopes=np.full((3, 1, 1), 0.1, np.float32),
        **constants,
    )
    check(path, expected)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("square", ["Pow(d, two)", "Mul(d, d)"])
def test_layer_norm_is_found_in_its_parts(tmp_path: Path, affine: bool, square: str) -> None:
    tail = "n = Div(d, r)  m = Mul(n, gamma)  y = Add(m, beta)" if affine else "y = Div(d, r)"
    body = f"""g (float[2,5,8] x) => (float[2,5,8] y) {{
        u = ReduceMean(x, axes)  d = Sub(x, u)  q = {square}  v = ReduceMean(q, axes)
        e = Add(v, eps)  r = Sqrt(e)  {tail} }}"""
    path = write(
        tmp_path,
        body,
        axes=np.asarray([-1]),
        two=np.float32(2),
        eps=np.float32(1e-5),
        gamma=weights(8),
        beta=weights(8),
    )
    check(path, ["LayerNormalization"])


def test_instance_norm_is_layer_norm_with_factors_per_channel(tmp_path: Path) -> None:
    body = "g (float[2,3,4,5] x) => (float[2,3,4,5] y) { y = InstanceNormalization<epsilon=0.001>(x, gamma, beta) }"
    path = write(tmp_path, body, gamma=weights(3), beta=weights(3))
    check(path, ["Reshape", "LayerNormalization", "Reshape", "Mul", "Add"])


def test_broadcasting_needs_no_expand(tmp_path: Path) -> None:
    body = """g (float[1,3,4] x) => (float[1,3,4] y, float[2,3,4] z) {
        n = ReduceL2(x, axes)  e = Expand(n, full)  y = Div(x, e)  w = Expand(n, wide)  z = Add(w, x) }"""
    path = write(tmp_path, body, axes=np.asarray([-1]), full=np.asarray([1, 3, 4]), wide=np.asarray([2, 3, 4]))
    check(path, ["ReduceL2", "Div", "Expand", "Add"])


def test_movement_is_written_out(tmp_path: Path) -> None:
    body = """g (float[2,6,4] x) => (float[6,4] a, float[2,4] b, float[2,3,4] c, float[2,2,4] d, float[8,6] e) {
        a = Gather<axis=0>(x, last)  b = Gather<axis=1>(x, two)  c = Gather<axis=1>(x, even)
        d = Slice(x, minus, big, one)  t = Transpose<perm=[0,2,1]>(x)  e = Reshape(t, target) }"""
    path = write(
        tmp_path, body, last=np.asarray(-1), two=np.asarray(2), even=np.asarray([0, 2, 4]), minus=np.asarray([-2]),
        big=np.asarray([2**62]), one=np.asarray([1]), target=np.asarray([-1, 6]),
    )  # fmt: skip
    model = canonical(path)
    assert set(operators(model)) == {"Slice", "Reshape", "Transpose"}
    assert_same_function(path, model)


def test_operands_with_many_forms_have_one(tmp_path: Path) -> None:
    body = """g (float[1,6,4] x) => (float[1,2,4] a, float[1,2,4] b, float[1,2,4] c, float[1,8,4] d, float[2,1,3,4] e) {
        a, b, c = Split<axis=1, num_outputs=3>(x)  d = Pad(x, pads, zero, axes)
        q = Reshape(x, rows)  e = Gather<axis=0>(q, grid) }"""
    path = write(
        tmp_path, body, pads=np.asarray([1, 1]), zero=np.float32(0), axes=np.asarray([-2]),
        rows=np.asarray([6, 4]), grid=np.asarray([[[0, 1, 2]], [[3, 4, 5]]]),
    )  # fmt: skip
    model = canonical(path)
    assert sorted(operators(model)) == ["Pad", "Reshape", "Split"]
    by_type = {node.op_type: node for node in model.graph}
    assert constant(by_type["Pad"].inputs[1]).tolist() == [0, 1, 0, 0, 1, 0]
    assert constant(by_type["Split"].inputs[1]).tolist() == [2, 2, 2]
    assert_same_function(path, model)


def test_channel_shuffle_taken_apart_is_a_strided_slice(tmp_path: Path) -> None:
    body = """g (float[1,8,3,3] x) => (float[1,4,3,3] a, float[1,4,3,3] b) {
        r = Reshape(x, s1)  t = Transpose<perm=[1,0,2]>(r)  u = Reshape(t, s2)
        a = Gather(u, zero)  b = Gather(u, one) }"""
    path = write(
        tmp_path, body, s1=np.asarray([4, 2, 9]), s2=np.asarray([2, -1, 4, 3, 3]), zero=np.asarray(0), one=np.asarray(1)
    )
    model = check(path, ["Slice", "Slice"])
    assert [int(constant(node.inputs[4])[0]) for node in model.graph] == [2, 2]


@given(
    perm=st.permutations(range(4)),
    sizes=st.lists(st.sampled_from([1, 1, 2, 3]), min_size=4, max_size=4),
    again=st.permutations(range(4)),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chains_of_movement_keep_every_value_in_place(
    tmp_path: Path, perm: list[int], sizes: list[int], again: list[int]
) -> None:
    flat = [size for size in (sizes[axis] for axis in perm) if size != 1]
    body = f"""g (float[{",".join(map(str, sizes))}] x) => (float[n] y) {{
        a = Transpose<perm={list(perm)}>(x)  b = Reshape(a, flat)  c = Reshape(b, full)
        d = Transpose<perm={list(again)}>(c)  y = Reshape(d, line) }}"""
    path = write(
        tmp_path, body, flat=np.asarray(flat, np.int64), full=np.asarray([sizes[axis] for axis in perm]),
        line=np.asarray([-1]),
    )  # fmt: skip
    model = canonical(path)
    assert_same_function(path, model, samples=1, tolerance=0)
    assert operators(model).count("Transpose") <= 2


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_slices_of_slices_are_one(tmp_path: Path, data: st.DataObject) -> None:
    sizes, lines, constants = [9, 8], [], {}
    for k in range(data.draw(st.integers(2, 4), "slices")):
        axis = data.draw(st.integers(-2, 1), "axis")
        start, end = (data.draw(st.integers(-sizes[axis], sizes[axis] + 2), what) for what in ("start", "end"))
        step = data.draw(st.sampled_from([-3, -2, -1, 1, 2, 3]), "step")
        count = len(range(sizes[axis])[start:end:step])
        if count == 0:
            continue
        sizes[axis] = count
        numbers = {f"start{k}": start, f"end{k}": end, f"axis{k}": axis, f"step{k}": step}
        lines.append(f"s{k} = Slice({lines[-1].split()[0] if lines else 'x'}, {', '.join(numbers)})")
        constants |= {name: np.asarray([number]) for name, number in numbers.items()}
    assume(len(lines) > 1)
    body = f"g (float[9,8] x) => (float[n,m] y) {{ {' '.join(lines)} y = Relu({lines[-1].split()[0]}) }}"
    path = write(tmp_path, body, **constants)
    model = canonical(path)
    assert operators(model) in (["Slice", "Relu"], ["Relu"])
    assert_same_function(path, model, samples=1, tolerance=0)


def test_every_second_pixel_is_one_slice(tmp_path: Path) -> None:
    body = """g (float[1,4,8,8] x) => (float[1,4,4,4] a, float[1,4,4,4] b) {
        r = Slice(x, zero, eight, two, two)
        a = Slice(r, zero, eight, three, two)  b = Slice(r, one, eight, three, two) }"""
    numbers = {"zero": 0, "one": 1, "two": 2, "three": 3, "eight": 8}
    check(write(tmp_path, body, **{name: np.asarray([n]) for name, n in numbers.items()}), ["Slice", "Slice"])


def test_identities_go_and_equal_work_is_done_once(tmp_path: Path) -> None:
    body = """g (float[1,4] x) => (float[1,4] y) {
        i = Identity(x)  d = Dropout(i)  c = Cast<to=1>(d)  e = Expand(c, shape)  z = Add(e, zero)
        a = Relu(z)  b = Relu(x)  s = Sum(a, b, x)  k = Concat<axis=0>(s)  y = Mul(k, one) }"""
    path = write(
        tmp_path, body, shape=np.asarray([1, 4]), zero=np.zeros((1, 4), np.float32), one=np.ones(4, np.float32)
    )
    check(path, ["Relu", "Add", "Add"])


def test_outputs_keep_their_names_even_where_nothing_is_computed(tmp_path: Path) -> None:
    body = """g (float[1,4] x) => (float[1,4] a, float[1,4] b, float[1,4] c, float[2] k) {
        a = Identity(x)  r = Relu(x)  b = Identity(r)  c = Relu(x)  k = Identity(fixed) }"""
    path = write(tmp_path, body, fixed=np.asarray([1, 2], np.float32))
    model = canonical(path)
    assert [v.name for v in model.graph.outputs] == ["a", "b", "c", "k"]
    assert operators(model).count("Relu") == 1
    assert_same_function(path, model)


def test_shape_arithmetic_folds_away(tmp_path: Path) -> None:
    body = """g (float[N,3,4,5] x) => (float[N,M] y) {
        s = Shape(x)  i = Constant<value = int64 {0}>()  n = Gather(s, i)  z = Constant<value = int64[1] {0}>()
        u = Unsqueeze(n, z)  m = Constant<value = int64[1] {-1}>()  t = Concat<axis=0>(u, m)  y = Reshape(x, t) }"""
    model = check(write(tmp_path, body), ["Reshape"])
    assert shape(model.graph.outputs[0]) == (1, 60)


def test_a_constant_condition_chooses_its_branch(tmp_path: Path) -> None:
    body = """g (float[1,3] x) => (float[3] y) {
        c = Constant<value_int=1>()  b = Cast<to=9>(c)
        y = If (b) <then_branch = t () => (float[3] p) { a = Constant<value_ints=[0]>()  p = Squeeze(x, a) },
                    else_branch = e () => (float[3] q) { z = Constant<value_ints=[-1]>()  q = Reshape(x, z) }> }"""
    path = write(tmp_path, body)
    check(path, ["Reshape"])


def test_flattening_softmax_of_old_opsets(tmp_path: Path) -> None:
    body = "g (float[1,6,4] x) => (float[1,6,4] y) { y = Softmax<axis=2>(x) }"
    check(write(tmp_path, body, opset=11), ["Softmax"])
    body = "g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis=1>(x) }"
    path = write(tmp_path, body, opset=11)
    assert_same_function(path, canonical(path))


def test_upsample_becomes_resize(tmp_path: Path) -> None:
    body = 'g (float[1,2,3,3] x) => (float[1,2,6,6] y) { y = Upsample<mode="nearest">(x, s) }'
    check(write(tmp_path, body, opset=9, s=np.asarray([1, 1, 2, 2], np.float32)), ["Resize"])


def test_unusable_statistics_are_named(tmp_path: Path) -> None:
    body = """g (float[1,3,4,4] x) => (float[1,3,4,4] y) {
        c = Conv(x, w)  y = BatchNormalization(c, gamma, beta, mean, var) }"""
    path = write(
        tmp_path, body, w=weights(3, 3, 1, 1), gamma=weights(3), beta=weights(3), mean=weights(3),
        var=np.asarray([1, -1, 1], np.float32),
    )  # fmt: skip
    with pytest.raises(ModelError, match="NaN or Inf") as caught:
        canonical(path)
    assert "BatchNormalization" in str(caught.value)


def test_weights_from_the_input_are_refused(tmp_path: Path) -> None:
    body = "g (float[1,3,4,4] x, float[3,3,1,1] w) => (float[1,3,4,4] y) { y = Conv(x, w) }"
    with pytest.raises(UnsupportedOperator, match="computed from the input"):
        canonical(write(tmp_path, body))


def test_float64_inside_is_refused_with_the_node(tmp_path: Path) -> None:
    body = "g (float[1,3] x) => (float[1,3] y) { d = Cast<to=11>(x)  e = Exp(d)  y = Cast<to=1>(e) }"
    with pytest.raises(ModelError, match="double") as caught:
        canonical(write(tmp_path, body))
    assert "Cast" in str(caught.value)
