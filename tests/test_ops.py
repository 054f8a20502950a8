"""The registered ops: schema, fake kernels, operand checks, and the fallback for devices without kernels."""
# SPDX-License-Identifier: MIT

import re

import pytest
import torch

from hrel_ext import _ops, _rational
from hrel_ext._batch import prepare

DTYPES = (torch.float32, torch.float64)


def operands(rng, dtype=torch.float32, label_sigma=0.1):
    acts = torch.randn(13, 5, 2, 3, generator=rng, dtype=dtype)
    batch = prepare(acts, torch.arange(13) % 4, label_sigma)
    return batch.acts, batch.order, batch.class_offsets, torch.full((5,), 2.0, dtype=dtype), batch.label_gram


@pytest.mark.parametrize("label_sigma", (0.1, 1.0))
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(rng, dtype, label_sigma):
    acts, order, offsets, sigma, gram = operands(rng, dtype, label_sigma)
    torch.library.opcheck(torch.ops.hrel_ext.relevance.default, (acts, order, offsets, sigma, 1.01, gram))
    multiples = torch.linspace(0.3, 10, 7, dtype=dtype)
    for per_filter in (False, True):
        arguments = (acts, order, offsets, multiples, per_filter, gram)
        torch.library.opcheck(torch.ops.hrel_ext.kernel_alignment.default, arguments)


def test_fake_kernels_have_the_shapes_of_the_real_ones(rng):
    acts, order, offsets, sigma, _ = operands(rng)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (acts, order, offsets, sigma)]
        entropy, joint = torch.ops.hrel_ext.relevance(*fake, 1.01, None)
        assert entropy.shape == joint.shape == (5,)
        mean, alignment = torch.ops.hrel_ext.kernel_alignment(*fake[:3], mode.from_tensor(sigma), True, None)
        assert mean.shape == (5,) and alignment.shape == (5, 5)


def test_operands_are_checked_by_name(rng):
    acts, order, offsets, sigma, _ = operands(rng)
    with pytest.raises(ValueError, match=re.escape("sigma must be (5,) of torch.float32 on cpu, got (4,)")):
        torch.ops.hrel_ext.relevance(acts, order, offsets, sigma[:4], 1.01, None)
    with pytest.raises(ValueError, match=re.escape("order must be (13,) of torch.int64 on cpu, got (12,)")):
        torch.ops.hrel_ext.relevance(acts, order[1:], offsets, sigma, 1.01, None)
    with pytest.raises(ValueError, match=re.escape("acts must be (N, F, D) of float32 or float64, got (13, 30)")):
        torch.ops.hrel_ext.relevance(acts.flatten(1), order, offsets, sigma, 1.01, None)
    with pytest.raises(ValueError, match=re.escape("label_gram must be (13, 13) of torch.float32 on cpu, got (2, 2)")):
        torch.ops.hrel_ext.relevance(acts, order, offsets, sigma, 1.01, torch.eye(2))


def test_fallback_warns_once_and_rebuilds_the_label_kernel(rng, monkeypatch):
    monkeypatch.setattr(_ops, "_warned", set())
    acts, order, offsets, _, _ = operands(rng)
    labels = torch.arange(13) % 4
    with pytest.warns(RuntimeWarning, match=r"holds no CUDA kernels.*hrel_ext\.reference computes"):
        gram = _ops._fall_back(acts, order, offsets, None)
    assert torch.equal(gram, (labels[:, None] == labels[None, :]).float())
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _ops._fall_back(acts, order, offsets, gram) is gram


@pytest.mark.parametrize("num_samples", (1, 2, 13, 100, 128))
@pytest.mark.parametrize("alpha", (0.98, 1.0, 1.01, 1.1, 1.3))
def test_bound_of_the_rational_function_holds_for_spectra_of_every_kind(alpha, num_samples):
    fit = _rational.fit(alpha, num_samples)
    assert fit is not None and fit.bound_bits <= _rational.MAX_BOUND_BITS
    rng = torch.Generator().manual_seed(3)
    spectra = [torch.rand(num_samples, generator=rng, dtype=torch.float64) ** power for power in (0.1, 1, 3, 10, 40)]
    spectra += [ratio ** torch.arange(num_samples, dtype=torch.float64) for ratio in (0.1, 0.5, 0.9, 0.99)]
    spectra += [(torch.arange(num_samples) < k).double() for k in range(1, num_samples + 1, 7)]
    beta = alpha - 1
    for spectrum in spectra:
        x = spectrum / spectrum.sum()  # (N,)
        logarithm = torch.where(x > 0, x, 1).log()
        exact = x * (logarithm if beta == 0 else torch.expm1(beta * logarithm) / beta)
        near = sum(c * x ** (k + 1) for k, c in enumerate(fit.powers))
        near = near + sum(w * x / (x + t) for w, t in zip(fit.weights, _rational.POLES.tolist(), strict=True))
        to_bits = [-g.sum().item() if beta == 0 else -(beta * g.sum()).log1p().item() / beta for g in (exact, near)]
        assert abs(to_bits[0] - to_bits[1]) / torch.log(torch.tensor(2.0)).item() <= fit.bound_bits * 1.001 + 1e-12


@pytest.mark.parametrize("alpha", (0.5, 0.9, 1.5, 2.5))
def test_no_rational_function_is_offered_where_none_is_accurate(alpha):
    assert _rational.fit(alpha, 128) is None
