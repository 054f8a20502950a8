"""The op matrix_entropy against one batched eigvalsh: Gram matrices of rectified maps, (B, N, N)."""
# SPDX-License-Identifier: MIT

import pytest
import torch
from conftest import SEED

import hrel_ext  # noqa: F401  # registers the op
from hrel_ext import reference
from hrel_ext.testing import Case, tolerance_bits

ALPHA = 1.01
SIZES = ((512, 32), (512, 64), (256, 128), (64, 256), (8, 512))  # at 512 alpha = 1.01 takes eigenvalues in float64


@pytest.mark.benchmark(group="entropy")
@pytest.mark.parametrize("count, size", SIZES)
def test_matrix_entropy(count, size, quick, take_turns, record_row):
    count, size = (4, size // 8) if quick else (count, size)
    maps, _ = Case("grams", "as of a layer", size, count, (16,), data="rectified").make(SEED)
    points = maps.transpose(0, 1)  # (B, N, D)
    gram = torch.exp(-(torch.cdist(points, points) ** 2) / 16)  # (B, N, N)
    exact = reference.matrix_entropy(gram[:8].double(), ALPHA)  # (8,)
    result = torch.ops.hrel_ext.matrix_entropy(gram, ALPHA)[:8]
    error_bits = (result.double() - exact).abs().max().item()
    assert error_bits <= tolerance_bits(gram.dtype, size, ALPHA)
    times = take_turns(
        lambda: torch.ops.hrel_ext.matrix_entropy(gram, ALPHA),
        {"reference": lambda: reference.matrix_entropy(gram, ALPHA)},
        every={"reference": 3},
    )
    reference_error_bits = (reference.matrix_entropy(gram[:8], ALPHA).double() - exact).abs().max().item()
    record_row(
        matrices=count,
        size=size,
        error_bits={"ours": error_bits, "reference": reference_error_bits},
        alpha=ALPHA,
        **times,
    )
