"""hrel_ext.permutation_null: what one more permutation costs beside the relevance of the layer, the width given."""
# SPDX-License-Identifier: MIT

import pytest
import torch
from conftest import SEED

import hrel_ext
from hrel_ext.null import draw_permutations
from hrel_ext.testing import LENET5, VGG16, oracle, tolerance_bits

ALPHA = 1.01
FEW, MANY = 10, 50  # permutations: a permutation costs the difference of the two times, over that of the numbers


@pytest.mark.benchmark(group="null")
@pytest.mark.parametrize("layer", (*LENET5, *VGG16), ids=str)
def test_permutation_null(layer, sized, take_turns, record_row):
    layer = sized(layer)
    acts, labels = layer.case().make(SEED)
    sigma = torch.tensor(layer.map_shape).prod().sqrt().item()
    result = hrel_ext.permutation_null(acts, labels, permutations=1, sigma=sigma, alpha=ALPHA)
    error_bits = (result.null.double() - _by_definition(acts, labels, sigma)).abs().max().item()
    assert error_bits <= 2 * tolerance_bits(acts.dtype, len(acts), ALPHA)

    def null(permutations: int) -> None:
        hrel_ext.permutation_null(acts, labels, permutations=permutations, sigma=sigma, alpha=ALPHA)

    times = take_turns(
        lambda: hrel_ext.relevance(acts, labels, sigma=sigma, alpha=ALPHA),
        {"few": lambda: null(FEW), "many": lambda: null(MANY)},
    )
    record_row(
        layer=layer.name,
        shape=list(acts.shape),
        permutations=[FEW, MANY],
        permutation_ms=(times["many"].median_ms - times["few"].median_ms) / (MANY - FEW),
        error_bits=error_bits,
        **times,
    )


def _by_definition(acts: torch.Tensor, labels: torch.Tensor, sigma: float) -> torch.Tensor:
    """The relevance (1, F) of the permuted labels in float64: the permutation that the seed 0 draws."""
    (permutation,) = draw_permutations(1, len(labels), torch.Generator().manual_seed(0))
    order = labels.argsort(stable=True)
    permuted = torch.empty_like(labels).scatter_(0, order[permutation], labels[order])
    return oracle(acts, permuted, sigma, ALPHA).relevance[None]
