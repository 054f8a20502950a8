"""Gradients: the op ``matrix_entropy`` against finite differences, closed forms, and at the edges of its domain."""
# SPDX-License-Identifier: MIT

import math

import pytest
import torch

from hrel_ext import _ops

ALPHAS = (0.3, 0.9, 1 - 1e-7, 1.0, 1 + 1e-7, 1.01, 1.3, 1.31, 2.0, 2.5, 3.0, 40.0)
DTYPES = (torch.float32, torch.float64)


def symmetric_entropy(matrices, alpha):
    """As gradcheck needs it: a change of one element changes its mirror image, too."""
    return _ops.matrix_entropy((matrices + matrices.mT) / 2, alpha)


def gradient(gram, alpha):
    gram = gram.clone().requires_grad_()
    return torch.autograd.grad(_ops.matrix_entropy(gram, alpha).sum(), gram)[0]


def wishart(rng, count, size, dtype=torch.float64):
    factors = torch.randn(count, size, size + 3, generator=rng, dtype=torch.float64)
    return (factors @ factors.mT).to(dtype)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("size", (1, 2, 5))
def test_finite_differences(rng, size, alpha):
    gram = wishart(rng, 2, size).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: symmetric_entropy(m, alpha), (gram,), atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_equal_eigenvalues(alpha):
    block = torch.tensor([[1.0, 0.4], [0.4, 1.0]], dtype=torch.float64)
    spectra = torch.stack([torch.eye(4, dtype=torch.float64), torch.block_diag(block, block)]).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: symmetric_entropy(m, alpha), (spectra,), atol=1e-6)
    assert gradient(spectra[:1], alpha).abs().max() < 1e-14  # the identity has the largest entropy of all


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_by_two_by_hand(dtype):
    # G = [[1, k], [k, 1]] has the eigenvalues (1 +- k) / 2 of A. At alpha = 1 dS/dk = -log2((1 + k) / (1 - k)) / 2, and
    # at 2 S = 1 - log2(1 + k^2); each of the two elements k gets half. On the diagonal <D, G> = 0 by the scale.
    k = 0.6
    gram = torch.tensor([[[1.0, k], [k, 1.0]]], dtype=dtype)
    for alpha, slope in ((1.0, -math.log2(1.6 / 0.4) / 2), (2.0, -2 * k / ((1 + k * k) * math.log(2)))):
        expected = torch.tensor([[[-k * slope, slope], [slope, -k * slope]]], dtype=torch.float64) / 2
        torch.testing.assert_close(gradient(gram, alpha).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradient_is_symmetric_and_orthogonal_to_the_matrix(rng, alpha):
    gram = wishart(rng, 3, 33)
    slope = gradient(gram, alpha)
    assert torch.equal(slope, slope.mT)
    assert (slope * gram).sum((-2, -1)).abs().max() < 1e-12  # S does not depend on the scale
    torch.testing.assert_close(gradient(8 * gram, alpha), slope / 8)
    upper = torch.full((33, 33), math.nan, dtype=torch.float64).triu(1)
    assert torch.equal(gradient(gram + upper, alpha), slope)  # only the lower triangle is read


@pytest.mark.parametrize("alpha", ALPHAS)
def test_float32_follows_float64(rng, alpha):
    gram = wishart(rng, 3, 33, torch.float32)
    assert gradient(gram, alpha).dtype == torch.float32
    torch.testing.assert_close(gradient(gram, alpha).double(), gradient(gram.double(), alpha), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("alpha", (1 - 1e-9, 1 + 1e-9, 1 - 1e-13, 1 + 1e-13))
def test_limit_at_alpha_one_is_smooth(rng, alpha):
    gram = wishart(rng, 3, 17)
    torch.testing.assert_close(gradient(gram, alpha), gradient(gram, 1.0), rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_singular_matrices_have_finite_gradients(alpha, dtype):
    # A = diag(1, 0), of which the eigenvalue 0 counts as eps.
    eps = torch.finfo(dtype).eps
    slope = gradient(torch.diag(torch.tensor([1.0, 0.0], dtype=dtype))[None], alpha)[0].double()
    beta = alpha - 1
    quotient = math.log(eps) if beta == 0 else math.expm1(beta * math.log(eps)) / beta
    by_hand = 2 / math.log(2) if alpha == 2 else -alpha * quotient * (1 - eps) / ((1 + eps**alpha) * math.log(2))
    assert slope[1, 1].item() == pytest.approx(by_hand, rel=1e-6)
    assert gradient(torch.ones(1, 7, 7, dtype=dtype), alpha).isfinite().all()


@pytest.mark.parametrize("alpha", (0.5, 0.9, 1.0, 1.01, 2.0, 3.0))
def test_a_singular_matrix_of_smooth_parameters_has_their_exact_gradient(rng, alpha):
    # A sample and its copy make an eigenvalue 0; the others are those of the distinct samples, weighted by number.
    points = torch.randn(4, 2, generator=rng, dtype=torch.float64).requires_grad_()

    def entropy(points, weights):
        gram = torch.exp(-(points[:, None] - points[None]).square().sum(-1))
        return _ops.matrix_entropy((gram * torch.outer(weights, weights).sqrt())[None], alpha)

    twice = entropy(torch.cat([points[:1], points]), torch.ones(5, dtype=torch.float64))
    weighted = entropy(points, torch.tensor([2.0, 1, 1, 1], dtype=torch.float64))
    expected = torch.autograd.grad(weighted, points)[0]
    torch.testing.assert_close(torch.autograd.grad(twice, points)[0], expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("alpha", (0.9, 1.0, 1.01, 2.0, 3.0))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_without_an_entropy_has_a_gradient_of_nan_alone(rng, alpha, dtype):
    gram = wishart(rng, 6, 13, dtype)
    expected = gradient(gram, alpha)
    gram[1, 4, 2], gram[2, 12, 12], gram[4] = math.nan, math.inf, 0
    slope = gradient(gram, alpha)
    assert slope[[1, 2, 4]].isnan().all()
    assert torch.equal(slope[[0, 3, 5]], expected[[0, 3, 5]])


@pytest.mark.parametrize("chunk_bytes", (1, 8 * 13 * 13 * 2))
@pytest.mark.parametrize("alpha", (1.01, 2.0))
def test_chunks_and_batches_change_nothing(rng, alpha, chunk_bytes, monkeypatch):
    gram = wishart(rng, 5, 13)
    expected = gradient(gram, alpha)
    alone = torch.cat([gradient(gram[b : b + 1], alpha) for b in range(5)])
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-14)
    monkeypatch.setattr(_ops, "MAX_CHUNK_BYTES", chunk_bytes)
    torch.testing.assert_close(gradient(gram, alpha), expected, rtol=0, atol=1e-14)
    assert gradient(gram[:0], alpha).shape == (0, 13, 13)


def test_a_second_derivative_is_refused(rng):
    gram = wishart(rng, 2, 5).requires_grad_()
    (slope,) = torch.autograd.grad(_ops.matrix_entropy(gram, 1.01).sum(), gram, create_graph=True)
    message = "^hrel_ext::matrix_entropy has no second derivative: its gradient cannot be differentiated with"
    with pytest.raises(NotImplementedError, match=message):
        slope.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(rng, dtype):
    for count in (0, 3):
        gram = wishart(rng, count, 13, dtype)
        torch.library.opcheck(torch.ops.hrel_ext.matrix_entropy_gradient.default, (gram, 1.01))
        for alpha in (1.01, 2.0):
            arguments = (gram.clone().requires_grad_(), alpha)
            torch.library.opcheck(torch.ops.hrel_ext.matrix_entropy.default, arguments)


def test_compiled_in_one_graph(rng):
    gram = wishart(rng, 3, 13).requires_grad_()
    compiled = torch.compile(lambda m: _ops.matrix_entropy(m, 1.01).sum(), fullgraph=True, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(gram), gram)[0], gradient(gram, 1.01))


@pytest.mark.cuda
@pytest.mark.parametrize("alpha", (0.9, 1.0, 1.01, 2.0))
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_equals_the_cpu(rng, dtype, alpha):
    gram = wishart(rng, 5, 33, dtype)
    gram[2, 4, 1] = math.nan
    slope = gradient(gram.cuda(), alpha)
    assert slope.is_cuda
    torch.testing.assert_close(slope.cpu(), gradient(gram, alpha), equal_nan=True)
