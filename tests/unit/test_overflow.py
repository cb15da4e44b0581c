"""Pairs of weights that 16 bits cannot hold: which they are, and that rounding keeps away from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.graph import overflow
from edgeopt.graph.quantization import INT8_MAX
from edgeopt.passes.quantize.rounding import gptq, hessian_error, nearest, weight_scales


def worst(integers: np.ndarray, shape: tuple[int, ...], groups: int) -> int:
    """Largest sum of two products of neighbours that inputs of 0…255 can make, written out without the module."""
    columns = integers.reshape(shape).transpose(0, *range(2, len(shape)), 1).reshape(shape[0], -1).astype(int)
    found = 0
    for row in columns:
        for first, second in zip(row[0::2], row[1::2], strict=False):
            found = max(found, abs(255 * (max(first, 0) + max(second, 0))), abs(255 * (min(first, 0) + min(second, 0))))
    return found


def draw(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Weights (1, rows, columns) with heavy tails, and second moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    columns = int(np.prod(shape[1:]))
    inputs = rng.normal(0, 1, (64, columns)) @ rng.normal(0, 1, (columns, columns))
    return rng.standard_t(3, (1, shape[0], columns)), (inputs.T @ inputs / 64)[None]


SHAPES = [(4, 8, 3, 3), (3, 3, 3, 3), (5, 1, 3, 3), (4, 6, 1, 1), (6, 17), (2, 4, 5)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.booleans())
def test_no_pair_of_rounded_weights_overflows(seed: int, shape: tuple[int, ...], second_order: bool) -> None:
    rows, hessian = draw(seed, shape)
    pairs = overflow.pairs("Gemm" if len(shape) == 2 else "Conv", shape, 1)
    importance = np.diagonal(hessian, axis1=1, axis2=2)
    scales = weight_scales(rows, importance, np.zeros(rows.shape[:2]), input_scale=0, per_tensor=False, pairs=pairs)
    plain = nearest(rows, scales, pairs)
    integers = gptq(rows, scales, hessian, pairs) if second_order else plain
    assert worst(integers, shape, 1) <= 2**15 - 1
    assert np.abs(integers.astype(int)).max() <= INT8_MAX
    assert (hessian_error(rows, scales, integers, hessian) <= hessian_error(rows, scales, plain, hessian) + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES))
def test_safe_pairs_cost_less_than_seven_bits(seed: int, shape: tuple[int, ...]) -> None:
    """Seven bits are the usual remedy: one of the candidates, so never better."""
    rows, _ = draw(seed, shape)
    pairs = overflow.pairs("Gemm" if len(shape) == 2 else "Conv", shape, 1)
    ones = np.ones((1, rows.shape[2]))
    scales = weight_scales(rows, ones, np.zeros(rows.shape[:2]), input_scale=0, per_tensor=False, pairs=pairs)
    halved = (np.abs(rows).max(2) / 63.5).astype(np.float32)
    ours, theirs = (
        np.square(nearest(rows, s, p) * s[..., None] - rows).sum(2) for s, p in ((scales, pairs), (halved, pairs[:0]))
    )
    assert (ours <= theirs * (1 + 1e-5)).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-127, 127), st.integers(-127, 127)), min_size=1, max_size=20))
def test_a_pair_gives_up_no_more_than_it_must(values: list[tuple[int, int]]) -> None:
    rows = np.array(values, np.int8).reshape(1, -1)
    pairs = np.arange(rows.shape[1]).reshape(-1, 2)
    kept = overflow.within(rows, pairs)
    before, after = (x.astype(int).reshape(-1, 2) for x in (rows, kept))
    same_sign = before[:, 0] * before[:, 1] > 0
    cut = same_sign & (np.abs(before).sum(1) > overflow.PAIR_LIMIT)
    assert np.array_equal(before[~cut], after[~cut])
    assert (np.abs(after[cut]).sum(1) == overflow.PAIR_LIMIT).all()
    assert (after * before >= 0).all(), "no sign turns"
    given_up = np.abs(before - after)[cut]
    assert (np.abs(given_up[:, 0] - given_up[:, 1]) <= 1).all()
    assert not overflow.excess(kept, pairs).any()


@pytest.mark.parametrize(
    ("op", "shape", "groups", "count"),
    [
        ("Conv", (8, 4, 3, 3), 1, 18),
        ("Conv", (8, 3, 3, 3), 1, 13),  # 27 columns: the last has no neighbour
        ("Conv", (8, 1, 3, 3), 8, 0),  # depthwise
        ("Conv", (16, 1, 3, 3), 8, 4),  # two filters per channel: multiplied like any group
        ("Gemm", (5, 7), 1, 3),
        ("ConvTranspose", (4, 3, 2, 2), 1, 0),
    ],
)
def test_which_columns_are_neighbours(op: str, shape: tuple[int, ...], groups: int, count: int) -> None:
    pairs = overflow.pairs(op, shape, groups)
    assert pairs.shape == (count, 2)
    assert len(np.unique(pairs)) == 2 * count
    if shape == (8, 4, 3, 3):
        assert pairs[0].tolist() == [0, 9], "channels last: the same tap of the next channel"


def test_zeros_stay_zeros() -> None:
    rows, hessian = draw(3, (4, 8, 3, 3))
    rows[np.abs(rows) < 0.7] = 0
    pairs = overflow.pairs("Conv", (4, 8, 3, 3), 1)
    scales = weight_scales(rows, np.ones((1, 72)), np.zeros((1, 4)), input_scale=0, per_tensor=False, pairs=pairs)
    assert (gptq(rows, scales, hessian, pairs)[rows == 0] == 0).all()
