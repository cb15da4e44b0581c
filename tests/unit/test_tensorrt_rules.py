"""TensorRT's rules as data: each is found where it is broken, and only there; releases and their operators."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.targets.tensorrt.checks import CHECKS
from edgeopt.targets.tensorrt.operators import ADDED, LISTED_8_5, UNDATED
from edgeopt.targets.tensorrt.rules import RULES
from edgeopt.targets.tensorrt.verdict import FileVerdict, check_file
from edgeopt.targets.tensorrt.versions import JETPACKS, KNOWN, UnknownVersionError, jetpack, named, tensorrt

GOOD = {
    "header": '<ir_version: 8, opset_import: ["" : 17]>',
    "inputs": "float[1,3,8,8] x, float[4,3,3,3] w, float[4] ws, float[4] b, float[4,4,1,1] v, float[4] vs, float[4] c",
    "in": "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)",
    "weight": "wq = QuantizeLinear <axis = 0> (w, ws, wz) wd = DequantizeLinear <axis = 0> (wq, ws, wz)",
    "conv": "y = Conv <pads = [1,1,1,1]> (d, wd, b)",
    "act": "r = Relu (y)",
    "mid": "rq = QuantizeLinear (r, s, z) rd = DequantizeLinear (rq, s, z)",
    "branch": "vq = QuantizeLinear <axis = 0> (v, vs, wz) vd = DequantizeLinear <axis = 0> (vq, vs, wz)",
    "point": "p = Conv (rd, vd, c)",
    "add": "a = Add (rd, p)",
    "cat": "o = Relu (a)",
}
"""A convolution, and a residual block of one more, as TensorRT likes them. Tests replace single parts."""
CONSTANTS = {
    "s": np.float32(0.1),
    "s2": np.float32(0.2),
    "s0": np.float32(0),
    "sc": np.full(4, 0.1, np.float32),
    "z": np.int8(0),
    "zu": np.uint8(0),
    "z1": np.int8(3),
    "zc": np.zeros(4, np.int8),
    "wz": np.zeros(4, np.int8),
    "z32": np.zeros(4, np.int32),
    "b32": np.arange(4, dtype=np.int32),
    "w8": np.ones((4, 3, 3, 3), np.int8),
    "low": np.int8(0),
    "high": np.int8(100),
    "shape": np.array([1, 4, 16, 16], np.int64),
}


def model(**parts: str) -> bytes:
    """The good graph with some parts replaced, its constants inside."""
    text = GOOD | parts
    body = "\n".join(text[name] for name in GOOD if name not in ("header", "inputs"))
    graph = ir.from_onnx_text(f"{text['header']} net ({text['inputs']}) => (float[1,4,8,8] o) {{ {body} }}")
    random = np.random.default_rng(0)
    for value in list(graph.graph.inputs)[1:]:
        if value.dtype != ir.DataType.FLOAT:
            continue
        array = np.abs(random.normal(size=tuple(value.shape.numpy()))).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        graph.graph.inputs.remove(value)
        graph.graph.register_initializer(value)
    used = {value.name: value for node in graph.graph for value in node.inputs if value is not None}
    for name, array in CONSTANTS.items():
        if name in used:
            tensor = ir.tensor(array, name=name)
            used[name].const_value = tensor
            used[name].type, used[name].shape = ir.TensorType(tensor.dtype), tensor.shape
            graph.graph.register_initializer(used[name])
    return ir.to_proto(graph).SerializeToString()


def check(source: bytes, release: str = "10.3", **options: bool) -> FileVerdict:
    return check_file(source, tensorrt(release, **options))


def test_every_rule_has_one_check_and_says_where_it_comes_from():
    ids = [rule.id for rule in RULES]
    assert sorted(ids) == sorted(CHECKS)
    assert len(set(ids)) == len(ids)
    assert all(rule.text and rule.source and rule.repair for rule in RULES)


@pytest.mark.parametrize("release", ["8.5", "8.6", "10.0", "10.3", "10.15", "11.0"])
def test_a_good_file_breaks_no_rule(release):
    verdict = check(model(), release)
    assert verdict.accepted
    assert not verdict.broken
    assert verdict.coverage.read["Conv"] == 2


BROKEN = {
    "opset-range": ({"header": '<ir_version: 10, opset_import: ["" : 21]>'}, "opset 21"),
    "operators-read": ({"cat": "o = Hardmax (a)"}, "Hardmax"),
    "operator-limits": (
        {"cat": "o = MaxPool <kernel_shape = [3,3], pads = [2,2,2,2], dilations = [2,2]> (a)"},
        "dilat",
    ),
    "tensor-types": (
        {"cat": "i = Cast <to = 5> (a) k = Cast <to = 1> (i) o = Relu (k)"},
        "int16",
    ),
    "no-integer-operators": ({"cat": "e, es, ez = DynamicQuantizeLinear (a) o = Relu (a)"}, "DynamicQuantizeLinear"),
    "int8-integers": ({"in": "q = QuantizeLinear (x, s, zu) d = DequantizeLinear (q, s, zu)"}, "uint8"),
    "zero-point-zero": ({"in": "q = QuantizeLinear (x, s, z1) d = DequantizeLinear (q, s, z1)"}, ": 3"),
    "scale-constant-positive": ({"in": "q = QuantizeLinear (x, s0, z) d = DequantizeLinear (q, s0, z)"}, ": 0"),
    "activation-per-tensor": (
        {"mid": "rq = QuantizeLinear <axis = 1> (r, sc, zc) rd = DequantizeLinear <axis = 1> (rq, sc, zc)"},
        "4 scales",
    ),
    "weight-axis": (
        {"branch": "vq = QuantizeLinear <axis = 1> (v, vs, wz) vd = DequantizeLinear <axis = 1> (vq, vs, wz)"},
        "axis 1",
    ),
    "no-int32-bias": ({"conv": "e = DequantizeLinear (b32, ws, z32) y = Conv <pads = [1,1,1,1]> (d, wd, e)"}, ""),
    "integers-dequantized": (
        {"in": "q0 = QuantizeLinear (x, s, z) q = Clip (q0, low, high) d = DequantizeLinear (q, s, z)"},
        "Clip",
    ),
    "weighted-both-inputs": ({"in": "d = Identity (x)"}, "only its second input"),
    "activation-unrounded": (
        {"act": "yq = QuantizeLinear (y, s, z) yd = DequantizeLinear (yq, s, z) r = Relu (yd)"},
        "",
    ),
    "add-skip-only": ({"add": "pq = QuantizeLinear (p, s, z) pd = DequantizeLinear (pq, s, z) a = Add (rd, pd)"}, ""),
    "concat-one-scale": (
        {
            "add": "t = Relu (rd) tq = QuantizeLinear (t, s, z) td = DequantizeLinear (tq, s, z)"
            " u = Relu (p) uq = QuantizeLinear (u, s2, z) ud = DequantizeLinear (uq, s2, z)"
            " k = Concat <axis = 1> (td, ud)",
            "cat": "o = Relu (k)",
        },
        "scales differ",
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_found_with_its_nodes_and_the_repair(rule):
    parts, said = BROKEN[rule]
    verdict = check(model(**parts), "8.5" if rule == "operators-read" else "10.3")
    (found,) = (one for one in verdict.rules if one.id == rule)
    assert found.verdict == "broken"
    assert found.nodes
    assert found.repair
    assert any(said in node for node in found.nodes)
    assert rule in verdict.broken
    assert verdict.accepted is (found.kind != "acceptance")
    other = set(verdict.broken) - {rule}
    assert not other, f"{rule} also breaks {other}"


def test_all_broken_acceptance_and_speed_rules_were_tried():
    tried = set(BROKEN) | {"float-weights", "dla-implicit"}
    assert {rule.id for rule in RULES if rule.kind in ("acceptance", "speed")} == tried


def test_operators_inside_of_branches_are_looked_at():
    branches = "o = If (yes) <then_branch = t () => (float[1,4,8,8] t1) { t1 = Relu (a) }, "
    branches += "else_branch = e () => (float[1,4,8,8] e1) { e1 = Hardmax (a) }>"
    verdict = check(model(cat=branches, inputs=f"{GOOD['inputs']}, bool yes"), "8.5")
    assert "operators-read" in verdict.broken
    assert verdict.coverage.missing == {"Hardmax": 1}


def test_integer_weights_are_for_10_and_later():
    weights = {"weight": "wd = DequantizeLinear <axis = 0> (w8, ws, wz)"}
    assert check(model(**weights), "8.6").broken == ("float-weights",)
    assert check(model(**weights), "10.3").accepted


def test_a_float_weighted_operator_is_told_and_breaks_nothing():
    verdict = check(model(branch="", point="p = Conv (r, v, c)", add="a = Add (r, p)", mid=""))
    assert verdict.accepted
    (advice,) = (one for one in verdict.rules if one.id == "weighted-in-float")
    assert advice.verdict == "note"


def test_the_dla_takes_no_pairs_and_has_limits_of_its_own():
    verdict = check(model(), "8.5", dla=True)
    assert "dla-implicit" in verdict.broken
    far = model(
        weight="wd = Identity (w)",
        **{"in": "d = Identity (x)"},
        mid="rd = Identity (r)",
        branch="vd = Identity (v)",
        cat="h = HardSwish (a) o = AveragePool <kernel_shape = [9,9], pads = [4,4,4,4]> (h)",
    )
    verdict = check(far, "8.5", dla=True)
    notes = {one.id: one.nodes for one in verdict.rules if one.verdict == "note"}
    assert any("HardSwish" in node for node in notes["dla-operators"])
    assert notes["dla-pools"]
    assert verdict.accepted


@pytest.mark.parametrize(("text", "release"), [("10.3", (10, 3)), ("10.3.0", (10, 3)), ("8.5.2.2", (8, 5))])
def test_versions_are_read_to_their_minor(text, release):
    assert tensorrt(text).release == release


@pytest.mark.parametrize(("text", "release"), [("5.1", (8, 5)), ("6.0", (8, 6)), ("6.2.1", (10, 3)), ("7.0", (10, 13))])
def test_a_jetpack_has_one_tensorrt(text, release):
    assert jetpack(text).release == release


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tensorrt@10.33", "Did you mean '10.3'?"),
        ("tensorrt@7.1", "Known here: 8.5"),
        ("jetpack-6.3", "Did you mean '6.2'?"),
        ("tensorrt@10.x", "unknown TensorRT version"),
        ("tensorrt 10.3", "neither tensorrt@VERSION nor jetpack-VERSION"),
        ("jetpack-7.0+dla", "has no DLA"),
        ("tensorrt@10.8+dla", "10.7 is the last release"),
    ],
)
def test_an_unknown_version_names_what_is_near(text, said):
    with pytest.raises(UnknownVersionError, match=said.replace("?", r"\?")):
        named(text)


def test_releases_read_more_and_more():
    known = LISTED_8_5 | set(ADDED) | UNDATED
    for before, after in pairwise(KNOWN):
        older, newer = (tensorrt(".".join(map(str, release))) for release in (before, after))
        assert {name for name in known if older.reads(name)} <= {name for name in known if newer.reads(name)}
        assert older.opsets[1] <= newer.opsets[1]
    assert not tensorrt("8.5").reads("LayerNormalization")
    assert tensorrt("8.6").reads("LayerNormalization")
    assert tensorrt("10.3").unsure("Gelu")
    assert not tensorrt("10.15").unsure("Gelu")
    assert set(JETPACKS.values()) <= set(KNOWN)
