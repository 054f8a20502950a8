"""A setting of each stage of a residual network, spelled out for its convolutions."""
# SPDX-License-Identifier: MIT

from collections.abc import Sequence
from typing import TypeVar

_Value = TypeVar("_Value", int, float)


def per_stage(
    prefix: str, blocks: Sequence[int], convolutions: Sequence[str], values: Sequence[_Value]
) -> dict[str, _Value]:
    """The value of its stage for these convolutions of every block, such as {"stage1.0.conv1": 8, ...}.

    Args:
        prefix: of the names of the stages, which are numbered from 1.
        blocks: in each stage.
        convolutions: their names in a block.
        values: of each stage.
    """
    return {
        f"{prefix}{stage}.{block}.{convolution}": value
        for stage, (count, value) in enumerate(zip(blocks, values, strict=True), start=1)
        for block in range(count)
        for convolution in convolutions
    }
