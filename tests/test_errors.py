"""Bad input: the exception and its message, word for word. A message names the argument, the rule and the value."""
# SPDX-License-Identifier: MIT

import math
import re

import pytest
import torch

import hrel_ext

ACTS, LABELS = torch.ones(8, 3), torch.arange(8)

ACTS_AND_LABELS = (
    ([[1.0]], LABELS, TypeError, "acts must be a torch.Tensor, got list"),
    (
        torch.ones(8, 3, dtype=torch.int64),
        LABELS,
        TypeError,
        "acts must be floating point (float16, bfloat16, float32 or float64), got torch.int64",
    ),
    (
        torch.ones(8, 3, dtype=torch.complex64),
        LABELS,
        TypeError,
        "acts must be floating point (float16, bfloat16, float32 or float64), got torch.complex64",
    ),
    (
        torch.ones(3),
        LABELS,
        ValueError,
        "acts must have shape (N, F), (N, F, L), (N, F, H, W) or (N, F, T, H, W), got (3,)",
    ),
    (
        torch.ones(8, 3, 1, 1, 1, 1),
        LABELS,
        ValueError,
        "acts must have shape (N, F), (N, F, L), (N, F, H, W) or (N, F, T, H, W), got (8, 3, 1, 1, 1, 1)",
    ),
    (torch.ones(0, 4), LABELS, ValueError, "acts must hold at least one sample (N >= 1), got shape (0, 4)"),
    (torch.ones(4, 3, 0), LABELS[:4], ValueError, "acts must hold at least one value per map, got shape (4, 3, 0)"),
    (ACTS, [0] * 8, TypeError, "labels must be a torch.Tensor, got list"),
    (ACTS, LABELS.float(), TypeError, "labels must have an integer dtype, got torch.float32"),
    (ACTS, LABELS.bool(), TypeError, "labels must have an integer dtype, got torch.bool"),
    (ACTS, LABELS[:7], ValueError, "labels must have shape (N,) = (8,) to match acts of shape (8, 3), got (7,)"),
    (ACTS, LABELS[:, None], ValueError, "labels must have shape (N,) = (8,) to match acts of shape (8, 3), got (8, 1)"),
    (ACTS, LABELS - 1, ValueError, "labels must be class ids >= 0, got -1"),
    (ACTS, LABELS.to("meta"), ValueError, "labels must be on the device of acts, cpu, got meta"),
    (ACTS, None, TypeError, "labels or label_gram must be given, and not both, got neither"),
)

EYE = torch.eye(8)


def with_element(i, j, value):
    kernel = EYE.clone()
    kernel[i, j] = value
    return kernel


LABEL_GRAMS = (
    ([[1.0]], TypeError, "label_gram must be a torch.Tensor, got list"),
    (EYE.long(), TypeError, "label_gram must be float32 or float64, got torch.int64"),
    (EYE.half(), TypeError, "label_gram must be float32 or float64, got torch.float16"),
    (
        EYE[:7],
        ValueError,
        "label_gram must have shape (N, N) = (8, 8) to match acts of shape (N, F, ...), got (7, 8)",
    ),
    (EYE.to("meta"), ValueError, "label_gram must be on the device of acts, cpu, got meta"),
    (with_element(3, 3, 0), ValueError, "label_gram must have a diagonal > 0 and finite, got 0.0 for sample 3"),
    (with_element(3, 3, math.nan), ValueError, "label_gram must have a diagonal > 0 and finite, got nan for sample 3"),
    (with_element(3, 3, math.inf), ValueError, "label_gram must have a diagonal > 0 and finite, got inf for sample 3"),
    (with_element(2, 5, math.nan), ValueError, "label_gram must be finite, also with unit diagonal, got nan at (2, 5)"),
    (
        with_element(2, 5, -math.inf),
        ValueError,
        "label_gram must be finite, also with unit diagonal, got -inf at (2, 5)",
    ),
    (with_element(2, 5, 0.5), ValueError, "label_gram must be symmetric, got 0.5 at (2, 5) and 0.0 at (5, 2)"),
    (
        with_element(2, 5, 1e-4),
        ValueError,
        "label_gram must be symmetric, got 9.999999747378752e-05 at (2, 5) and 0.0 at (5, 2)",
    ),
    (
        with_element(2, 5, 2.0) + with_element(5, 2, 2.0) - EYE,
        ValueError,
        "label_gram must be positive semidefinite, got -0.125 as the smallest eigenvalue of L / N",
    ),
    (
        9 * (2 * EYE - 1),  # 1 on the diagonal and -1 elsewhere, times 9
        ValueError,
        "label_gram must be positive semidefinite, got -0.75 as the smallest eigenvalue of L / N",
    ),
)

NUMBER = "sigma must be > 0 and finite, got "
PER_FILTER = "sigma must be > 0 and finite for every filter, got "
KIND = 'sigma must be a positive number, a tensor of shape (F,) or (), None, "layer" or "filter", got '

SIGMAS = (
    (-1.0, ValueError, NUMBER + "-1.0"),
    (0.0, ValueError, NUMBER + "0.0"),
    (math.nan, ValueError, NUMBER + "nan"),
    (math.inf, ValueError, NUMBER + "inf"),
    ([1.0, 1.0, 1.0], TypeError, KIND + "list"),
    ("foo", ValueError, KIND + "'foo'"),
    (torch.ones(2), ValueError, "sigma must have shape (F,) = (3,) or (), got (2,)"),
    (torch.ones(3, 1), ValueError, "sigma must have shape (F,) = (3,) or (), got (3, 1)"),
    (torch.tensor(0.0), ValueError, PER_FILTER + "0.0 for filter 0"),
    (torch.ones(3, dtype=torch.int64), TypeError, "sigma must be floating point, got torch.int64"),
    (torch.tensor([1.0, 0.0, -1.0]), ValueError, PER_FILTER + "0.0 for filter 1"),
    (torch.tensor([1.0, 1.0, math.nan]), ValueError, PER_FILTER + "nan for filter 2"),
    (torch.tensor([math.inf, 1.0, 1.0]), ValueError, PER_FILTER + "inf for filter 0"),
)

NUMBERS = (
    ({"alpha": 0.0}, ValueError, "alpha must be > 0 and finite, got 0.0"),
    ({"alpha": -1}, ValueError, "alpha must be > 0 and finite, got -1"),
    ({"alpha": math.nan}, ValueError, "alpha must be > 0 and finite, got nan"),
    ({"alpha": math.inf}, ValueError, "alpha must be > 0 and finite, got inf"),
    ({"alpha": "1"}, TypeError, "alpha must be a real number, got str"),
)

LABEL_SIGMAS = (
    ({"label_sigma": 0}, ValueError, "label_sigma must be > 0 and finite, got 0"),
    ({"label_sigma": -0.1}, ValueError, "label_sigma must be > 0 and finite, got -0.1"),
    ({"label_sigma": math.nan}, ValueError, "label_sigma must be > 0 and finite, got nan"),
    ({"label_sigma": "0.1"}, TypeError, "label_sigma must be a real number, got str"),
)

GRIDS = (
    ({"low": 0}, ValueError, "low must be > 0 and finite, got 0"),
    ({"low": math.nan}, ValueError, "low must be > 0 and finite, got nan"),
    ({"high": 0.1}, ValueError, "high must be >= low = 0.3 and finite, got 0.1"),
    ({"high": math.inf}, ValueError, "high must be >= low = 0.3 and finite, got inf"),
    ({"num_widths": 0}, ValueError, "num_widths must be >= 1, got 0"),
    ({"num_widths": 2.0}, TypeError, "num_widths must be an int, got float"),
)


def raises(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("function", (hrel_ext.relevance, hrel_ext.relevance_terms, hrel_ext.kernel_width))
@pytest.mark.parametrize(("acts", "labels", "error", "message"), ACTS_AND_LABELS)
def test_acts_and_labels(function, acts, labels, error, message):
    with raises(error, message):
        function(acts, labels)


@pytest.mark.parametrize("function", (hrel_ext.relevance, hrel_ext.relevance_terms, hrel_ext.kernel_width))
@pytest.mark.parametrize(("label_gram", "error", "message"), LABEL_GRAMS)
def test_label_gram(function, label_gram, error, message):
    with raises(error, message):
        function(ACTS, label_gram=label_gram)


@pytest.mark.parametrize("function", (hrel_ext.relevance, hrel_ext.relevance_terms, hrel_ext.kernel_width))
def test_label_gram_stands_alone(function):
    with raises(TypeError, "labels or label_gram must be given, and not both, got both"):
        function(ACTS, LABELS, label_gram=EYE)
    with raises(ValueError, "label_sigma is the width of a kernel of labels, got 0.5 with a label_gram"):
        function(ACTS, label_gram=EYE, label_sigma=0.5)


def test_label_gram_that_rounding_made_indefinite_is_taken():
    kernel = torch.ones(8, 8, dtype=torch.float64) - 2e-6 * (EYE - 1)  # 7 of the 8 eigenvalues are -2e-6
    assert hrel_ext.relevance(ACTS, label_gram=kernel.float(), sigma=1.0).abs().max() < 1e-4
    with pytest.raises(ValueError, match=r"positive semidefinite, got -2\.5e-07"):
        hrel_ext.relevance(ACTS, label_gram=kernel, sigma=1.0)


@pytest.mark.parametrize("differentiable", (False, True))
@pytest.mark.parametrize("function", (hrel_ext.relevance, hrel_ext.relevance_terms))
@pytest.mark.parametrize(("sigma", "error", "message"), SIGMAS)
def test_sigma(function, sigma, error, message, differentiable):
    with raises(error, message):
        function(ACTS, LABELS, sigma=sigma, differentiable=differentiable)


@pytest.mark.parametrize("function", (hrel_ext.relevance, hrel_ext.relevance_terms))
@pytest.mark.parametrize(("arguments", "error", "message"), NUMBERS + LABEL_SIGMAS)
def test_numbers(function, arguments, error, message):
    for sigma in (1.0, None):
        with raises(error, message):
            function(ACTS, LABELS, sigma=sigma, **arguments)


@pytest.mark.parametrize(("arguments", "error", "message"), GRIDS + LABEL_SIGMAS)
def test_grid_of_the_width_search(arguments, error, message):
    with raises(error, message):
        hrel_ext.kernel_width(ACTS, LABELS, **arguments)


@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("dtype", (torch.float16, torch.float32, torch.float64))
@pytest.mark.parametrize("alpha", (1.01, 1.5, 2, 3))
def test_first_filter_that_is_not_finite_is_named(bad, dtype, alpha):
    acts = torch.randn(8, 12, 2, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    acts[5, 3, 1, 0] = bad
    acts[0, 10] = math.nan
    for sigma in (1.0, "filter"):
        with raises(ValueError, "acts must be finite, filter 3 holds NaN or Inf"):
            hrel_ext.relevance(acts, LABELS, sigma=sigma, alpha=alpha)
        with raises(ValueError, "acts must be finite, filter 3 holds NaN or Inf"):
            hrel_ext.relevance(acts, LABELS, sigma=sigma, alpha=alpha, differentiable=True)
    with raises(ValueError, "acts must be finite, filter 3 holds NaN or Inf"):
        hrel_ext.kernel_width(acts, LABELS, per_filter=True)


def test_a_single_sample_that_is_not_finite_is_named():
    with raises(ValueError, "acts must be finite, filter 1 holds NaN or Inf"):
        hrel_ext.relevance(torch.tensor([[1.0, math.nan]]), torch.tensor([0]), sigma=1.0)


@pytest.mark.parametrize(
    ("value", "message"),
    (
        (math.nan, "acts must be finite, filter 1 holds NaN or Inf"),
        (math.inf, "acts must be finite, filter 1 holds NaN or Inf"),
        (3e38, "acts must be finite with finite pairwise distances, got a mean distance of inf"),
    ),
)
def test_search_for_the_layer_wants_finite_distances(value, message):
    acts = torch.ones(8, 3)
    acts[2, 1] = value
    for search in (hrel_ext.kernel_width, hrel_ext.relevance):
        with raises(ValueError, message):
            search(acts, LABELS)


@pytest.mark.parametrize("bad", (math.nan, math.inf))
def test_a_bad_value_hidden_from_every_pair_of_one_class_is_still_found(bad):
    # All classes differ, so no class block holds a pair; the filter's own matrix must betray it.
    acts = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    acts[7, 1] = bad
    with raises(ValueError, "acts must be finite, filter 1 holds NaN or Inf"):
        hrel_ext.relevance(acts, LABELS, sigma=1.0)


def test_a_width_that_is_0_in_float32_is_named():
    acts = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    with raises(ValueError, PER_FILTER + "0.0 for filter 0"):
        hrel_ext.relevance(acts, LABELS, sigma=1e-60)
    assert hrel_ext.relevance(acts.double(), LABELS, sigma=1e-60).isfinite().all()


@pytest.mark.parametrize("sigma", (1.0, torch.ones(3), "layer", "filter"))
def test_wrong_labels_are_named_before_wrong_activations(sigma):
    with raises(ValueError, "labels must be class ids >= 0, got -1"):
        hrel_ext.relevance(ACTS * math.nan, LABELS - 1, sigma=sigma)


def test_a_wrong_width_is_named_before_wrong_activations():
    with raises(ValueError, "sigma must be > 0 and finite for every filter, got -1.0 for filter 1"):
        hrel_ext.relevance(ACTS * math.nan, LABELS, sigma=torch.tensor([1.0, -1.0, 1.0]))


def test_errors_leave_the_next_call_alone():
    acts = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    expected = hrel_ext.relevance(acts, LABELS, sigma=1.0)
    for _ in range(3):
        with pytest.raises(ValueError, match="acts must be finite"):
            hrel_ext.relevance(acts * math.nan, LABELS, sigma=1.0)
        assert torch.equal(hrel_ext.relevance(acts, LABELS, sigma=1.0), expected)


DECAYS = (
    ("0.9", TypeError, "decay must be a real number, got str"),
    (True, TypeError, "decay must be a real number, got bool"),
    (1, ValueError, "decay must be >= 0 and < 1, got 1"),
    (-0.1, ValueError, "decay must be >= 0 and < 1, got -0.1"),
    (math.nan, ValueError, "decay must be >= 0 and < 1, got nan"),
)
MOVED = (
    (2.0, TypeError, "width must be a torch.Tensor, got float"),
    (torch.ones(3, dtype=torch.int64), TypeError, "width must be floating point, got torch.int64"),
    (torch.ones(3, 1), ValueError, "width must have shape () or (F,), got (3, 1)"),
    (torch.tensor([1.0, 0.0, 1.0]), ValueError, "width must be > 0 and finite, got 0.0"),
    (torch.tensor([1.0, 1.0, math.nan]), ValueError, "width must be > 0 and finite, got nan"),
)
UNLIKE = (
    (torch.ones(2), "(2,) of torch.float32 on cpu"),
    (torch.tensor(1.0), "() of torch.float32 on cpu"),
    (torch.ones(3).double(), "(3,) of torch.float64 on cpu"),
)


@pytest.mark.parametrize(("decay", "error", "message"), DECAYS)
def test_decay_of_the_moving_width(decay, error, message):
    with raises(error, message):
        hrel_ext.MovingWidth(decay)


def test_moving_width_keeps_its_value_after_an_error():
    moving = hrel_ext.MovingWidth()
    with raises(RuntimeError, "a MovingWidth has no value before its first update"):
        _ = moving.value
    moving.update(torch.ones(3))
    wrong = (
        *MOVED,
        *(
            (w, ValueError, f"width must be like the first one, (3,) of torch.float32 on cpu, got {m}")
            for w, m in UNLIKE
        ),
    )
    for width, error, message in wrong:
        with raises(error, message):
            moving.update(width)
    for state, error, message in (
        ({"decay": 0.5}, ValueError, "the state of a MovingWidth must hold decay and value, got decay"),
        ({"decay": 2, "value": None}, ValueError, "decay must be >= 0 and < 1, got 2"),
        *(({"decay": 0.5, "value": width}, error, message) for width, error, message in MOVED),
    ):
        with raises(error, message):
            moving.load_state_dict(state)
    assert torch.equal(moving.value, torch.ones(3)) and moving.state_dict()["decay"] == 0.9
