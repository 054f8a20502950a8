"""Quantities of information: hand-size examples, what theory guarantees of any matrices, gradients, messages."""
# SPDX-License-Identifier: MIT

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrel_ext
from hrel_ext import (
    CONVENTIONS,
    _ops,
    conditional_entropy,
    conditional_mutual_information,
    entropy,
    gram,
    joint_entropy,
    mutual_information,
    total_correlation,
)

ALPHAS = (0.5, 0.9, 1.0, 1.01, 1.5, 2.0, 3.0)
DTYPES = (torch.float32, torch.float64)
TOLERANCE = 1e-9  # bits, of a few entropies in float64


def of_classes(*classes, dtype=torch.float64):
    """The 0/1 block kernel of a discrete variable, (N, N)."""
    values = torch.tensor(classes)
    return (values[:, None] == values).to(dtype)


def renyi(*shares, alpha):
    """The Renyi entropy of a distribution, in bits, as defined."""
    if alpha == 1:
        return -sum(p * math.log2(p) for p in shares)
    return math.log2(sum(p**alpha for p in shares)) / (1 - alpha)


def close(value, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=value.dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_two_samples_by_hand(alpha):
    for k in (0.0, 0.3, 0.9):  # the eigenvalues of A are (1 + k) / 2 and (1 - k) / 2, and kernels multiply
        K = torch.tensor([[1.0, k], [k, 1.0]], dtype=torch.float64)
        single, square = (renyi((1 + c) / 2, (1 - c) / 2, alpha=alpha) for c in (k, k * k))
        close(entropy(K, alpha=alpha), single)
        close(joint_entropy(K, K, alpha=alpha), square)
        close(mutual_information(K, K, alpha=alpha), 2 * single - square)
        close(conditional_entropy(K, K, alpha=alpha), square - single)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_three_samples_by_hand(alpha):
    # All elements off the diagonal k: the eigenvalues of A are (1 + 2 k) / 3 and twice (1 - k) / 3.
    k = 0.25
    K = torch.full((3, 3), k, dtype=torch.float64).fill_diagonal_(1)
    close(entropy(K, alpha=alpha), renyi(1 / 2, 1 / 4, 1 / 4, alpha=alpha))
    # Samples 1 and 2 alike by k, and the third one far away: (1 + k) / 3, (1 - k) / 3 and 1 / 3.
    far = torch.block_diag(K[:2, :2], K[2:, 2:])
    close(entropy(far, alpha=alpha), renyi(5 / 12, 3 / 12, 4 / 12, alpha=alpha))


def test_numbers_of_both_conventions_by_hand():
    # Two samples at distance 1 and sigma = 1. HRel: k = exp(-1), Shannon. Yu: k = exp(-1/2), alpha = 1.01.
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for name, k, bits in (("hrel", math.exp(-1), 0.900046), ("yu", math.exp(-0.5), 0.713099)):
        alpha = CONVENTIONS[name].alpha
        value = entropy(gram(x, sigma=1.0, convention=name), alpha=alpha)
        close(value, renyi((1 + k) / 2, (1 - k) / 2, alpha=alpha))
        assert round(value.item(), 6) == bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_block_kernels_have_the_entropies_of_their_classes(alpha, dtype):
    a, b = of_classes(0, 0, 0, 0, 1, 1, 2, 2, dtype=dtype), of_classes(0, 0, 1, 1, 0, 1, 0, 1, dtype=dtype)
    tolerance = 2e-5 if dtype == torch.float32 and alpha >= 0.9 else 5e-3 if dtype == torch.float32 else 1e-7
    single, other = renyi(1 / 2, 1 / 4, 1 / 4, alpha=alpha), renyi(1 / 2, 1 / 2, alpha=alpha)
    joint = renyi(1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8, alpha=alpha)
    close(entropy(a, alpha=alpha), single, tolerance)
    close(joint_entropy(a, b, alpha=alpha), joint, tolerance)
    close(mutual_information(a, b, alpha=alpha), single + other - joint, tolerance)
    close(conditional_entropy(b, a, alpha=alpha), joint - single, tolerance)
    close(mutual_information(a, a, alpha=alpha), single, tolerance)  # I(K; K) = S(K) for elements 0 and 1
    close(conditional_entropy(a, a, alpha=alpha), 0.0, tolerance)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_two_bits_and_their_xor(alpha):
    a, b, c = of_classes(0, 0, 1, 1), of_classes(0, 1, 0, 1), of_classes(0, 1, 1, 0)
    close(mutual_information(a, c, alpha=alpha), 0.0, 1e-7)
    close(conditional_mutual_information(a, b, c, alpha=alpha), 1.0, 1e-7)
    close(total_correlation(a, b, c, alpha=alpha), 1.0, 1e-7)
    close(joint_entropy(a, b, c, alpha=alpha), 2.0, 1e-7)


def test_information_may_be_negative_away_from_alpha_one():
    # Five samples, the pairs of classes 00 (three times), 01 and 10. Order 2: S = -log2 of a sum of squares of shares,
    # (16 + 1) / 25 for each variable and (9 + 1 + 1) / 25 for both.
    a, b = of_classes(0, 0, 0, 0, 1), of_classes(0, 0, 0, 1, 0)
    close(mutual_information(a, b, alpha=2), math.log2(11 / 25) - 2 * math.log2(17 / 25))
    assert mutual_information(a, b, alpha=2) < -0.07
    assert mutual_information(a, b, alpha=1) > 0.07


seeds = settings(max_examples=12, deadline=None, derandomize=True)


@st.composite
def triples(draw):
    """Three kernels of the same samples, Gaussian, of classes, or with elements of either sign, (N, N) each."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    num_samples, kernels = draw(st.integers(1, 12)), []
    for kind in draw(st.lists(st.sampled_from(("gaussian", "classes", "cosine")), min_size=3, max_size=3)):
        x = torch.randn(num_samples, draw(st.integers(1, 4)), generator=rng, dtype=torch.float64)
        if kind == "gaussian":
            kernels.append(gram(x, sigma=draw(st.sampled_from((0.1, 1.0, 3.0, 30.0)))))
        elif kind == "classes":
            kernels.append(of_classes(*(x[:, 0] > 0.3).tolist()))
        else:
            kernels.append((x @ x.mT + (x @ x.mT).mT) / 2)  # its diagonal is not 1
    return kernels


@seeds
@given(triples(), st.sampled_from(ALPHAS))
def test_what_holds_for_every_order(kernels, alpha):
    a, b, c = kernels
    tolerance = TOLERANCE if alpha >= 0.9 else 1e-5  # an eigenvalue 0 that rounding makes eps counts eps^alpha
    single = [entropy(k, alpha=alpha) for k in kernels]
    joint, triple = joint_entropy(a, b, alpha=alpha), joint_entropy(a, b, c, alpha=alpha)
    assert all(-tolerance <= s <= math.log2(len(a)) + tolerance for s in (*single, joint, triple))
    assert joint >= max(single[:2]) - tolerance and triple >= joint - tolerance
    assert mutual_information(a, b, alpha=alpha) <= min(single[:2]) + tolerance
    assert mutual_information(a, a, alpha=alpha) <= single[0] + tolerance
    # The chain rule, symmetry, and the same in terms of each other.
    conditional = conditional_mutual_information(a, b, c, alpha=alpha)
    close(mutual_information(a, b * c, alpha=alpha), mutual_information(a, c, alpha=alpha) + conditional, tolerance)
    close(conditional, conditional_mutual_information(b, a, c, alpha=alpha), tolerance)
    close(single[1] + conditional_entropy(a, b, alpha=alpha), joint, tolerance)
    close(total_correlation(a, b, alpha=alpha), mutual_information(a, b, alpha=alpha), tolerance)
    close(total_correlation(a, alpha=alpha), 0.0)
    # The order of the samples does not matter, nor do units of the kernel.
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(1))
    close(joint_entropy(a[order][:, order], b[order][:, order], alpha=alpha), joint, tolerance)
    units = torch.linspace(0.5, 4, len(a), dtype=torch.float64)
    close(joint_entropy(a * torch.outer(units, units), 7 * b, alpha=alpha), joint, tolerance)


@seeds
@given(triples())
def test_what_holds_for_shannon_alone(kernels):
    a, b, c = kernels
    assert joint_entropy(a, b, alpha=1) <= entropy(a, alpha=1) + entropy(b, alpha=1) + TOLERANCE
    assert conditional_mutual_information(a, b, c, alpha=1) >= -TOLERANCE
    assert total_correlation(a, b, c, alpha=1) >= -TOLERANCE
    assert conditional_entropy(a, b, alpha=1) <= entropy(a, alpha=1) + TOLERANCE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", (0.9, 1.01, 2.0))
def test_batch_equals_loop_bit_for_bit(rng, alpha, dtype):
    a, b, g = (gram(torch.randn(2, 3, 13, 4, generator=rng, dtype=dtype), sigma="mean") for _ in range(3))
    alone = b[0, 0]
    functions = (
        (lambda *k: entropy(k[0], alpha=alpha), (a, alone)),
        (lambda *k: joint_entropy(*k, alpha=alpha), (a, alone)),
        (lambda *k: mutual_information(*k, alpha=alpha), (a, alone)),
        (lambda *k: conditional_entropy(*k, alpha=alpha), (alone, a)),
        (lambda *k: conditional_mutual_information(*k, alpha=alpha), (a, alone, g[0])),
        (lambda *k: total_correlation(*k, alpha=alpha), (a, b[:, :1], g[1])),
    )
    for function, matrices in functions:
        together = function(*matrices)
        assert together.shape == (2, 3) and together.dtype == dtype
        for i in range(2):
            for j in range(3):
                some = [m.expand(2, 3, 13, 13)[i, j] for m in matrices]
                assert torch.equal(function(*some), together[i, j])
    assert entropy(a[:0], alpha=alpha).shape == (0, 3)


def test_a_unit_diagonal_is_left_as_it_is(rng):
    for dtype in DTYPES:
        K = gram(torch.randn(5, 17, 3, generator=rng, dtype=dtype), sigma=2.0)
        assert torch.equal(entropy(K), _ops.matrix_entropy(K, 1.01))


@pytest.mark.parametrize("alpha", (1.0, 1.01, 2.0, 2.5))
def test_gradients_through_the_whole_chain(rng, alpha):
    points = torch.randn(3, 2, 5, 2, generator=rng, dtype=torch.float64)

    def terms(a, b, g):
        K1, K2, given = gram(a, sigma=1.5), gram(b[0], sigma=2.0), gram(g, sigma=1.0)
        yield mutual_information(K1, K2, alpha=alpha)
        yield conditional_mutual_information(K1, K2, given, alpha=alpha)
        yield total_correlation(K1, K2, given, alpha=alpha)
        yield conditional_entropy(a @ a.mT + torch.eye(5, dtype=a.dtype), K2, alpha=alpha)  # its diagonal is not 1

    inputs = [p.clone().requires_grad_() for p in points]
    assert torch.autograd.gradcheck(lambda *x: tuple(terms(*x)), inputs, atol=1e-6)


def test_descent_on_the_information_makes_variables_independent(rng):
    x = torch.randn(24, 2, generator=rng)
    given, free = gram(x, sigma=2.0), x.clone().requires_grad_()
    optimizer, before = torch.optim.Adam([free], lr=0.05), mutual_information(given, given)
    for _ in range(30):
        optimizer.zero_grad()
        mutual_information(gram(free, sigma=2.0), given).backward()
        optimizer.step()
    assert mutual_information(gram(free.detach(), sigma=2.0), given) < before / 2


K = torch.eye(3)
SHAPE = "must have shape (..., N, N) with N >= 1, got "
SKEW = torch.tensor([[1.0, 0.5], [0.2, 1.0]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    (
        (lambda: entropy([[1.0]]), TypeError, "K must be a torch.Tensor, got list"),
        (lambda: entropy(K.half()), TypeError, "K must be float32 or float64, got torch.float16"),
        (lambda: entropy(K[:2]), ValueError, f"K {SHAPE}(2, 3)"),
        (lambda: entropy(K[0]), ValueError, f"K {SHAPE}(3,)"),
        (lambda: entropy(K[:0, :0]), ValueError, f"K {SHAPE}(0, 0)"),
        (lambda: entropy(K, alpha=0.0), ValueError, "alpha must be > 0 and finite, got 0.0"),
        (lambda: entropy(K, alpha="1"), TypeError, "alpha must be a real number, got str"),
        (lambda: entropy(K * math.nan), ValueError, "K must be finite, got NaN or Inf"),
        (lambda: entropy(K / 0), ValueError, "K must be finite, got NaN or Inf"),
        (lambda: entropy(1 - K), ValueError, "K must have a diagonal > 0, got 0"),
        (lambda: entropy(-K), ValueError, "K must have a diagonal > 0, got -1"),
        (
            lambda: entropy(SKEW),
            ValueError,
            "K must be symmetric, |K_ij - K_ji| <= 0.0003 sqrt(K_ii K_jj), got 0.3 times it",
        ),
        (
            lambda: entropy(1 + K.double() - 1.5 * K.double()),
            ValueError,
            "K must be positive semidefinite, so |K_ij| <= sqrt(K_ii K_jj), got 2 times it",
        ),
        (
            lambda: mutual_information(K, K.double()),
            TypeError,
            "K2 must have the dtype of K1, torch.float32, got torch.float64",
        ),
        (
            lambda: conditional_entropy(K, K.to("meta")),
            ValueError,
            "given must be on the device of K1, cpu, got meta",
        ),
        (
            lambda: conditional_mutual_information(K, K, K[:2, :2]),
            ValueError,
            "given must be of the N = 3 samples of K1 (3, 3), got (2, 2)",
        ),
        (
            lambda: joint_entropy(K.expand(2, 3, 3), K, K.expand(5, 3, 3)),
            ValueError,
            "the leading dimensions of the Gram matrices must broadcast, got K1 (2, 3, 3), K2 (3, 3), K3 (5, 3, 3)",
        ),
        (lambda: joint_entropy(K, -K), ValueError, "K2 must have a diagonal > 0, got -1"),
        (lambda: joint_entropy(), TypeError, "at least one Gram matrix K1 must be given, got none"),
        (lambda: total_correlation(alpha=1), TypeError, "at least one Gram matrix K1 must be given, got none"),
    ),
)
def test_messages(call, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


@pytest.mark.cuda
@pytest.mark.parametrize("alpha", (0.9, 1.0, 1.01, 2.0))
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_equals_the_cpu(rng, dtype, alpha):
    x = torch.randn(3, 5, 33, 4, generator=rng, dtype=dtype)
    results = []
    for device in ("cpu", "cuda"):
        points = x.to(device).requires_grad_()
        bits = conditional_mutual_information(*hrel_ext.gram(points, sigma=2.0), alpha=alpha)
        assert bits.device.type == device
        results.append((bits.detach().cpu(), torch.autograd.grad(bits.sum(), points)[0].cpu()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
