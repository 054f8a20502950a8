"""Gram matrices: the conventions by hand, distances that keep their digits, widths by rule, gradients, messages."""
# SPDX-License-Identifier: MIT

import math
import re

import pytest
import torch

import hrel_ext
from hrel_ext import CONVENTIONS, gram, mean_distance, median_distance

DTYPES = (torch.float32, torch.float64)
TRIANGLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]], dtype=torch.float64)  # sides 3, 4 and 5


def by_definition(x, sigma, factor):
    """One sample pair at a time, in float64."""
    rows = [[(a - b).square().sum().item() for b in x.double()] for a in x.double()]
    return torch.tensor([[math.exp(-d / (factor * sigma**2)) for d in row] for row in rows], dtype=torch.float64)


def test_conventions_by_hand():
    # HRel and Wickstrom: exp(-d^2 / sigma^2). Sanchez Giraldo and Yu: exp(-d^2 / (2 sigma^2)).
    a, b, c = (math.exp(-side / 25) for side in (9, 16, 25))
    expected = torch.tensor([[1, a, c], [a, 1, b], [c, b, 1]], dtype=torch.float64)
    torch.testing.assert_close(gram(TRIANGLE, sigma=5.0), expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(gram(TRIANGLE, sigma=5.0, convention="hrel"), expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(gram(TRIANGLE, sigma=5.0, convention="yu"), expected.sqrt(), rtol=1e-15, atol=0)
    # Yu's published code takes exp(-d^2 / s).
    torch.testing.assert_close(gram(TRIANGLE, sigma=math.sqrt(25.0)), expected, rtol=1e-15, atol=0)
    assert CONVENTIONS == {"hrel": (1.0, 1.0), "yu": (2.0, 1.01)}
    with pytest.raises(TypeError):
        CONVENTIONS["mine"] = CONVENTIONS["yu"]


def test_translation_between_the_conventions(rng):
    x = torch.randn(13, 3, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(
        gram(x, sigma=1.7, convention="yu"), gram(x, sigma=math.sqrt(2) * 1.7), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((1, 1), (2, 5), (13, 3), (33, 700)))
def test_agrees_with_the_definition(rng, shape, dtype):
    x = torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
    sigma = shape[1] ** 0.5
    K = gram(x, sigma=sigma)
    assert K.dtype == dtype
    torch.testing.assert_close(K.double(), by_definition(x, sigma, 1), rtol=2 * torch.finfo(dtype).eps, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", (0.0, 1e4))
def test_near_duplicates_far_from_the_origin_keep_their_digits(rng, offset, dtype):
    x = (offset + 1e-3 * torch.randn(17, 5, generator=rng, dtype=torch.float64)).to(dtype)
    x[5] = x[3]
    sigma = 2e-3
    K = gram(x, sigma=sigma)
    # An exponent up to 30 in size multiplies its rounding by as much.
    torch.testing.assert_close(K.double(), by_definition(x, sigma, 1), rtol=32 * torch.finfo(dtype).eps, atol=0)
    assert K[3, 5] == 1 and torch.equal(K, K.mT) and (K.diagonal() == 1).all()


@pytest.mark.parametrize("exponent", (-900, -300, 300, 900))
def test_no_square_leaves_the_range(rng, exponent):
    x = torch.randn(9, 3, generator=rng, dtype=torch.float64)
    scale = 2.0**exponent
    assert torch.equal(gram(scale * x, sigma=scale), gram(x, sigma=1.0))
    for rule in ("mean", "median"):
        assert torch.equal(gram(scale * x, sigma=rule), gram(x, sigma=rule))
    small = 2.0 ** round(exponent / 9)
    assert torch.equal(gram((small * x).float(), sigma=small), gram(x.float(), sigma=1.0))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_is_computed_as_float32(rng, dtype):
    x = torch.randn(3, 9, 4, generator=rng).to(dtype)
    assert torch.equal(gram(x, sigma="mean"), gram(x.float(), sigma="mean"))
    assert gram(x, sigma=1.0).dtype == mean_distance(x).dtype == median_distance(x).dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_equals_loop_bit_for_bit(rng, dtype):
    x = torch.randn(2, 3, 13, 4, generator=rng, dtype=dtype)
    labels = torch.arange(13) % 3
    widths = torch.rand(2, 3, generator=rng, dtype=dtype) + 1
    for sigma in (1.3, widths, widths[:, :1], widths[0], "mean", "median", "aligned"):
        K = gram(x, sigma=sigma, labels=labels if sigma == "aligned" else None)
        assert K.shape == (2, 3, 13, 13)
        for b in range(2):
            for c in range(3):
                one = sigma.expand(2, 3)[b, c] if isinstance(sigma, torch.Tensor) else sigma
                alone = gram(x[b, c], sigma=one, labels=labels if sigma == "aligned" else None)
                assert torch.equal(alone, K[b, c])
    assert torch.equal(gram(x.mT.contiguous().mT, sigma=widths), gram(x, sigma=widths))
    assert gram(x[:0], sigma="mean").shape == (0, 3, 13, 13)
    assert torch.equal(gram(x, sigma=1.3), gram(x, sigma=torch.tensor(1.3, dtype=torch.float64)))


def test_rules_by_hand():
    assert mean_distance(TRIANGLE).item() == 4 and median_distance(TRIANGLE).item() == 4
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # 1, 2, 3, 4, 6, 7
    assert mean_distance(line).item() == pytest.approx(23 / 6) and median_distance(line).item() == 3
    assert torch.equal(gram(line, sigma="mean"), gram(line, sigma=mean_distance(line)))
    assert torch.equal(gram(line, sigma="median", convention="yu"), gram(line, sigma=3.0, convention="yu"))
    for rule in (mean_distance, median_distance):
        assert rule(torch.ones(2, 1, 5)).tolist() == rule(torch.ones(2, 4, 5)).tolist() == [0, 0]


@pytest.mark.parametrize("sigma", ("mean", "median", "aligned", 0.3))
def test_equal_samples_and_one_sample_have_a_matrix_of_ones(sigma):
    labels = torch.tensor([0, 0, 1]) if sigma == "aligned" else None
    assert torch.equal(gram(torch.full((2, 3, 4), 7.0), sigma=sigma, labels=labels), torch.ones(2, 3, 3))
    one = torch.tensor([0]) if sigma == "aligned" else None
    assert torch.equal(gram(torch.randn(2, 1, 4), sigma=sigma, labels=one), torch.ones(2, 1, 1))


def test_aligned_width_is_that_of_kernel_width_in_every_convention(rng):
    x, labels = torch.randn(2, 20, 3, generator=rng, dtype=torch.float64), torch.arange(20) % 4
    x += labels[:, None]
    width = hrel_ext.kernel_width(x.transpose(0, 1), labels, per_filter=True)
    expected = gram(x, sigma=width)
    assert torch.equal(gram(x, sigma="aligned", labels=labels), expected)
    torch.testing.assert_close(gram(x, sigma="aligned", labels=labels, convention="yu"), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_gradients_are_those_of_finite_differences_of_every_order(rng, convention):
    x = torch.randn(2, 5, 3, generator=rng, dtype=torch.float64)
    x[0, 1] = x[0, 0]  # coincident samples
    sigma = torch.tensor([0.9, 2.0], dtype=torch.float64)

    def of(x, sigma):
        return gram(x, sigma=sigma, convention=convention)

    arguments = (x.requires_grad_(), sigma.requires_grad_())
    assert torch.autograd.gradcheck(of, arguments)
    assert torch.autograd.gradgradcheck(of, arguments)


def test_the_gradient_does_not_see_an_offset(rng):
    x = torch.randn(9, 3, generator=rng).double()
    slopes = []
    for offset in (0.0, 2.0**20):
        moved = (x + offset).requires_grad_()
        slopes += torch.autograd.grad(gram(moved, sigma=1.0).square().sum(), moved)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-9)


def test_a_width_by_a_rule_is_a_constant(rng):
    x = torch.randn(9, 3, generator=rng).requires_grad_()
    assert not mean_distance(x).requires_grad and not median_distance(x).requires_grad
    (by_rule,) = torch.autograd.grad(gram(x, sigma="median").sum(), x)
    (given,) = torch.autograd.grad(gram(x, sigma=median_distance(x)).sum(), x)
    assert torch.equal(by_rule, given)


X, LABELS = torch.ones(2, 4, 3), torch.arange(4)
RULE = 'sigma must be a positive number, a tensor, "aligned", "mean" or "median", got '
SAMPLES = "x must have shape (..., N, D) with N >= 1 and D >= 1, got "


@pytest.mark.parametrize(
    ("x", "keywords", "error", "message"),
    (
        ([[1.0]], {}, TypeError, "x must be a torch.Tensor, got list"),
        (X.int(), {}, TypeError, "x must be floating point, got torch.int32"),
        (X[0, 0], {}, ValueError, SAMPLES + "(3,)"),
        (X[:, :0], {}, ValueError, SAMPLES + "(2, 0, 3)"),
        (X[..., :0], {}, ValueError, SAMPLES + "(2, 4, 0)"),
        (X.where(X.cumsum(1) != 3, math.nan), {}, ValueError, "x must be finite, got nan at (0, 2, 0)"),
        (X / 0, {}, ValueError, "x must be finite, got inf at (0, 0, 0)"),
        (
            1e300 * X.double(),
            {"sigma": 1e-300},
            ValueError,
            "x must be finite in units of sigma, got a ratio x / sigma beyond the range of float64",
        ),
        (X, {"convention": "wickstrom"}, ValueError, 'convention must be "hrel" or "yu", got \'wickstrom\''),
        (X, {"convention": None}, ValueError, 'convention must be "hrel" or "yu", got None'),
        (X, {"sigma": 0.0}, ValueError, "sigma must be > 0 and finite, got 0.0"),
        (X, {"sigma": math.nan}, ValueError, "sigma must be > 0 and finite, got nan"),
        (X, {"sigma": True}, TypeError, RULE + "bool"),
        (X, {"sigma": None}, TypeError, RULE + "NoneType"),
        (X, {"sigma": "layer"}, ValueError, RULE + "'layer'"),
        (X, {"sigma": torch.tensor([1, 2])}, TypeError, "sigma must be floating point, got torch.int64"),
        (
            X,
            {"sigma": torch.ones(3)},
            ValueError,
            "sigma must broadcast to the leading dimensions (2,) of x (2, 4, 3), got (3,)",
        ),
        (
            X,
            {"sigma": torch.ones(5, 2)},
            ValueError,
            "sigma must broadcast to the leading dimensions (2,) of x (2, 4, 3), got (5, 2)",
        ),
        (X, {"sigma": torch.tensor([1.0, -2.0])}, ValueError, "sigma must be > 0 and finite, got -2.0"),
        (X, {"sigma": torch.ones(2, device="meta")}, ValueError, "sigma must be on the device of x, cpu, got meta"),
        (X, {"sigma": "aligned"}, ValueError, 'labels are needed for sigma="aligned", got None'),
        (X, {"labels": LABELS}, ValueError, 'labels are for sigma="aligned" alone, got labels with another sigma'),
        (
            X,
            {"sigma": "aligned", "labels": LABELS[:3]},
            ValueError,
            "labels must have shape (N,) = (4,) to match x (2, 4, 3), got (3,)",
        ),
        (X, {"sigma": "aligned", "labels": LABELS - 1}, ValueError, "labels must be class ids >= 0, got -1"),
        (
            torch.tensor([[0.0], [0.0], [0.0], [1.0]]),
            {"sigma": "median"},
            ValueError,
            'sigma="median" must find a median distance > 0 between different samples, got 0',
        ),
    ),
)
def test_messages(x, keywords, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        gram(x, **{"sigma": 1.0, **keywords})
    if not keywords:
        for rule in (mean_distance, median_distance):
            with pytest.raises(error, match=f"^{re.escape(message)}$"):
                rule(x)


@pytest.mark.cuda
@pytest.mark.parametrize("sigma", (1.3, "mean", "median", "aligned"))
@pytest.mark.parametrize("dtype", (torch.float16, *DTYPES))
def test_cuda_equals_the_cpu(rng, dtype, sigma):
    x = (5 + torch.randn(3, 33, 7, generator=rng)).to(dtype)
    labels = torch.arange(33) % 4 if sigma == "aligned" else None
    expected = gram(x, sigma=sigma, labels=labels)
    x, labels = x.cuda().requires_grad_(), None if labels is None else labels.cuda()
    K = gram(x, sigma=sigma, labels=labels)
    assert K.is_cuda and torch.equal(K, K.mT) and (K.diagonal(dim1=-2, dim2=-1) == 1).all()
    torch.testing.assert_close(K.detach().cpu(), expected)
    assert torch.autograd.grad(K.sum(), x)[0].isfinite().all()
