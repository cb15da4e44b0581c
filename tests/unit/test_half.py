"""Numbers as float16 stores them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.graph.half import SMALLEST_HALF, halved, rounded
from edgeopt.graph.quantization import QuantizedGraph
from tests.integration.small_nets import classifier

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(floats)
def test_a_number_is_float16s_nearest_but_neither_zero_nor_infinite_by_it(number: float) -> None:
    found = float(rounded(np.asarray(number, np.float32)))
    if abs(number) < SMALLEST_HALF:
        assert found == (np.copysign(SMALLEST_HALF, number) if number else 0)
    elif abs(number) >= 65520:
        assert found == number
    else:
        assert found == float(np.float16(number))
    assert float(rounded(np.asarray(found, np.float32))) == found


def test_only_the_named_nodes_are_halved_also_where_they_share_a_constant() -> None:
    model = classifier()
    first, second = [node for node in model.graph if node.op_type == "Conv"][:2]
    shared = first.inputs[2]
    graph = halved(QuantizedGraph(model), {first.name}).model
    made = {node.name: node for node in graph.graph}
    stored = made[first.name].inputs[2].const_value.numpy()
    assert (stored == rounded(shared.const_value.numpy())).all()
    assert (stored != shared.const_value.numpy()).any()
    assert made[second.name].inputs[2].name == second.inputs[2].name
    assert (graph.graph.initializers[shared.name].const_value.numpy() == shared.const_value.numpy()).all()
    assert first.inputs[2] is shared, "the graph itself is not changed"
