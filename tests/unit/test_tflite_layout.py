"""Orders of axes: what a reshape or a transposition makes of them, against numpy."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.formats.tflite import Layout
from edgeopt.targets.tflite import layout as lay

sizes = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@st.composite
def shapes_and_perms(draw):
    shape = tuple(draw(sizes))
    return shape, tuple(draw(st.permutations(range(len(shape)))))


@given(shapes_and_perms())
def test_a_layout_goes_to_the_file_and_back(drawn):
    shape, perm = drawn
    layout = lay.plain(shape, perm)
    array = np.arange(int(np.prod(shape))).reshape(shape)
    there = layout.to_file(array, lay.stored_shape(layout))
    assert there.shape == array.transpose(perm).shape
    assert np.array_equal(layout.to_graph(there), array)


def test_a_flattened_image_lies_channels_last():
    layout = Layout((1, 12), (1, 3, 2, 2), lay.NHWC)
    array = np.arange(12).reshape(1, 12)
    there = layout.to_file(array, (1, 12))
    assert there.tolist() == [array.reshape(1, 3, 2, 2).transpose(0, 2, 3, 1).ravel().tolist()]
    assert np.array_equal(layout.to_graph(there), array)


@given(shapes_and_perms(), st.data())
def test_a_transposition_relabels(drawn, data):
    shape, perm = drawn
    asked = tuple(data.draw(st.permutations(range(len(shape)))))
    array = np.arange(int(np.prod(shape))).reshape(shape)
    stored = array.transpose(perm)
    result = array.transpose(asked)
    assert np.array_equal(result.transpose(lay.relabelled(perm, asked)), stored)
    assert lay.before_transpose(lay.relabelled(perm, asked), asked) == perm


@given(shapes_and_perms(), st.data())
def test_a_reshape_of_stored_values_is_the_stored_reshape(drawn, data):
    shape, perm = drawn
    factors = [factor for size in shape for factor in ([2, 2] if size == 4 else [size]) if factor > 1]
    target: list[int] = []
    while factors:
        count = data.draw(st.integers(1, len(factors)))
        target.append(int(np.prod(factors[:count])))
        factors = factors[count:]
    target = target or [1]
    atoms = lay.Atoms.of(shape, target)
    assert atoms is not None
    order = atoms.through(perm)
    if order is None:
        return
    array = np.arange(int(np.prod(shape))).reshape(shape)
    for found in lay.completed(order, target):
        wanted = array.reshape(target).transpose(found)
        assert np.array_equal(array.transpose(perm).reshape(wanted.shape), wanted)


def test_shapes_without_common_factors_have_no_atoms():
    assert lay.Atoms.of((6, 4), (4, 6)) is None


def test_axes_of_size_one_move_nothing():
    assert lay.moves_nothing((1, 8, 1, 1), (0, 1, 2, 3), lay.NHWC)
    assert not lay.moves_nothing((1, 8, 2, 1), (0, 1, 2, 3), lay.NHWC)
