"""What cutting a file of any format gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """A model whose segments lie side by side.

    Args:
        data: the file.
        produced: given name → output name: the tensor as its segment computes it.
        consumed: given name → input name: the tensor as the next segments read it.
        missing: given names that no tensor that the file computes carries.
    """

    data: bytes
    produced: Mapping[str, str]
    consumed: Mapping[str, str]
    missing: tuple[str, ...] = ()
