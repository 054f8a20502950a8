"""Label kernels in the place of class ids: soft labels, several labels a sample, regression, and kernels of classes."""
# SPDX-License-Identifier: MIT

import math

import pytest
import torch

import hrel_ext
from hrel_ext import reference, testing
from hrel_ext._batch import prepare

DTYPES = (torch.float32, torch.float64)
ALPHAS = (0.9, 1, 1.01, 1.5, 2, 3)


@pytest.fixture(autouse=True)
def one_thread():
    """More of them make eigenvalues of small matrices many times slower on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def problem(rng, num_samples=33, num_filters=7, dtype=torch.float32):
    acts = torch.randn(num_samples, num_filters, 3, 2, generator=rng, dtype=torch.float64).to(dtype)
    return acts, torch.randn(num_samples, 4, generator=rng, dtype=torch.float64)


def first_appearance(labels):
    """The same classes, numbered as they first appear."""
    return (labels[:, None] == labels).int().argmax(1)


def kernel_of_classes(labels, dtype):
    return (labels[:, None] == labels).to(dtype)


def kernels(y):
    """Label kernels (N, N) of targets y (N, 4): Gaussian, soft labels, several labels, and signed, of rank one."""
    soft, several = y.softmax(1), (y > 0).double()
    several[:, 0] = 1  # no sample without a label
    return {
        "gaussian": hrel_ext.gram(y, sigma=2.0),
        "soft": soft @ soft.mT,
        "several": several @ several.mT,
        "linear": y @ y.mT,
        "signs": y[:, :1].sign() @ y[:, :1].sign().mT,
    }


KERNELS = ("gaussian", "soft", "several", "linear", "signs")


def terms_by_definition(acts, kernel, sigma, alpha):
    """I, S(A), S(A, B) and S(B) in float64, from the oracle's entropies."""
    scale = kernel.diagonal().sqrt()  # (N,)
    kernel = kernel / (scale[:, None] * scale)
    maps, widths = acts.double().flatten(2), torch.full(acts.shape[1:2], sigma, dtype=torch.float64)
    entropy, joint = reference.entropies(maps, kernel, widths, alpha)
    own = reference.matrix_entropy(kernel, alpha)
    return reference.RelevanceTerms(entropy + own - joint, entropy, joint, own)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_samples", (1, 2, 33, 100))
def test_any_kernel_agrees_with_the_definition(rng, num_samples, dtype, name):
    acts, y = problem(rng, num_samples, dtype=dtype)
    kernel = kernels(y)[name]
    for alpha in ALPHAS:
        terms = hrel_ext.relevance_terms(acts, label_gram=kernel, sigma=2.0, alpha=alpha)
        testing.assert_terms_close(terms, terms_by_definition(acts, kernel, 2.0, alpha), dtype, num_samples, alpha)
        assert {term.dtype for term in terms} == {dtype} and terms.label_entropy.shape == ()
        assert torch.equal(hrel_ext.relevance(acts, label_gram=kernel, sigma=2.0, alpha=alpha), terms.relevance)


@pytest.mark.parametrize("scale", (1.0, 3.0, 1e-30))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", (1, 5, 33))
def test_kernel_of_classes_gives_the_bits_of_the_classes(rng, num_classes, dtype, scale):
    acts, _ = problem(rng, dtype=dtype)
    labels = first_appearance(torch.randint(num_classes, (33,), generator=rng))
    kernel = kernel_of_classes(labels, dtype)
    kernel[labels == labels[-1]] *= 7  # a class may have its own scale
    kernel *= scale
    for sigma in (2.0, None, "filter"):
        for alpha in (1.01, 2):
            got = hrel_ext.relevance_terms(acts, label_gram=kernel, sigma=sigma, alpha=alpha)
            expected = hrel_ext.relevance_terms(acts, labels, sigma=sigma, alpha=alpha)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    for per_filter in (False, True):
        got = hrel_ext.kernel_width(acts, label_gram=kernel, per_filter=per_filter)
        assert torch.equal(got, hrel_ext.kernel_width(acts, labels, per_filter=per_filter))


def test_class_path_is_taken_where_the_kernel_is_one_of_classes_and_only_there(rng):
    acts, _ = problem(rng)
    labels = torch.randint(5, (33,), generator=rng)
    for kernel in (
        kernel_of_classes(labels, torch.float64),
        hrel_ext.gram(torch.nn.functional.one_hot(labels).double(), sigma=0.1),  # e-87 across
    ):
        batch = prepare(acts, None, label_gram=kernel)
        assert batch.label_gram is None and batch.across == 0
        assert torch.equal(batch.classes.labels, first_appearance(labels))
    kernel = kernel_of_classes(labels, torch.float64)
    kernel[0] *= 1 - 1e-12
    kernel[:, 0] *= 1 - 1e-12
    kernel[0, 0] = 1
    batch = prepare(acts, None, label_gram=kernel)
    assert batch.label_gram is not None and batch.across is None and batch.label_gram.dtype == torch.float32


def test_kernel_of_classes_far_from_0_across_is_that_of_the_label_sigma(rng):
    acts, _ = problem(rng, dtype=torch.float64)
    labels = torch.randint(5, (33,), generator=rng)
    kernel = hrel_ext.gram(torch.nn.functional.one_hot(labels).double(), sigma=0.8)
    got = hrel_ext.relevance_terms(acts, label_gram=kernel, sigma=2.0)
    expected = hrel_ext.relevance_terms(acts, labels, sigma=2.0, label_sigma=0.8)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    widths = (hrel_ext.kernel_width(acts, label_gram=kernel), hrel_ext.kernel_width(acts, labels, label_sigma=0.8))
    torch.testing.assert_close(*widths, rtol=1e-12, atol=0)


def test_soft_labels_that_become_hard_give_the_classes(rng):
    acts, _ = problem(rng, dtype=torch.float64)
    labels = torch.randint(5, (33,), generator=rng)
    hard = hrel_ext.relevance(acts, labels, sigma=2.0)
    logits = torch.nn.functional.one_hot(labels, 5).double() + 0.1 * torch.rand(33, 5, generator=rng)
    errors = []
    for sharpness in (1, 4, 16, 40):
        soft = (sharpness * logits).softmax(1)  # (N, C)
        errors.append((hrel_ext.relevance(acts, label_gram=soft @ soft.mT, sigma=2.0) - hard).abs().max().item())
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.5 and errors[-1] < 1e-10


def test_several_labels_a_sample_by_hand():
    # Labels {a}, {a, b}, {b} as vectors of unit length have the products 1 / sqrt(2) beside the middle, and 0.
    several = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    terms = hrel_ext.relevance_terms(torch.tensor([[0.0], [9.0], [99.0]]), label_gram=several @ several.T, sigma=1.0)
    # The eigenvalues of L / 3 are 0, 1/3 and 2/3, and all maps differ.
    bits = math.log2(sum((k / 3) ** 1.01 for k in (1, 2))) / -0.01
    assert terms.label_entropy.item() == pytest.approx(bits, abs=2e-5)
    assert terms.entropy.item() == pytest.approx(math.log2(3), abs=2e-5)
    assert terms.relevance.item() == pytest.approx(bits, abs=4e-5)


def test_filter_that_follows_the_target_of_a_regression_scores_above_noise(rng):
    y = torch.randn(100, 1, generator=rng)
    noise = torch.randn(100, 9, generator=rng)
    acts = torch.cat([y + 0.1 * noise[:, :1], -2 * y.tanh(), noise[:, 2:]], 1)  # (N, F)
    acts = acts / acts.std(0)
    kernel = hrel_ext.gram(y, sigma=0.5)
    for sigma in (0.5, None, "filter"):
        scores = hrel_ext.relevance(acts, label_gram=kernel, sigma=sigma)
        assert scores[:2].min() > scores[2:].max() + 0.2


@pytest.mark.parametrize("per_filter", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_no_width_of_the_grid_aligns_better(rng, name, dtype, per_filter):
    acts, y = problem(rng, dtype=dtype)
    kernel = kernels(y)[name]
    width = hrel_ext.kernel_width(acts, label_gram=kernel, per_filter=per_filter, low=0.2, high=4, num_widths=39)
    scale = kernel.diagonal().sqrt()
    multiples = torch.linspace(0.2, 4, 39, dtype=torch.float64)
    mean, alignment = reference.alignments(
        acts.double().flatten(2), kernel / (scale[:, None] * scale), multiples, per_filter
    )
    position = (width.reshape(-1, 1).double() - multiples * mean[:, None]).abs().argmin(1)  # (R,)
    torch.testing.assert_close(multiples[position] * mean, width.reshape(-1).double(), rtol=1e-5, atol=0)
    assert (alignment.amax(1) - alignment.gather(1, position[:, None])[:, 0]).max() < 1e-4
    assert width.dtype == dtype and width.shape == ((7,) if per_filter else ())


@pytest.mark.parametrize("per_filter", (False, True))
def test_width_search_survives_an_alignment_that_vanishes(rng, per_filter):
    # Of two balanced groups of signs <K, L> goes to 0 as K goes to 11', so rounding may make it negative.
    acts, signs = torch.randn(64, 5, 6, generator=rng), 1.0 - 2 * (torch.arange(64) % 2)[:, None]
    arguments = {"label_gram": signs @ signs.T, "per_filter": per_filter, "low": 0.3, "high": 1e5, "num_widths": 50}
    width = hrel_ext.kernel_width(acts, **arguments)
    assert torch.equal(width, hrel_ext.kernel_width(acts, **{**arguments, "high": 0.3, "num_widths": 1}))
    same = hrel_ext.kernel_width(torch.zeros_like(acts), **arguments)
    assert torch.equal(same, torch.ones_like(same))


@pytest.mark.parametrize("name", KERNELS)
def test_any_layout_and_dtype_of_the_kernel_and_inputs_stay_as_they_are(rng, name):
    acts, y = problem(rng)
    kernel = kernels(y)[name]
    expected = hrel_ext.relevance(acts, label_gram=kernel, sigma=2.0)
    padded = torch.full((67, 67), torch.nan, dtype=torch.float64)
    padded[1:-1:2, 1:-1:2] = kernel
    view = padded[1:-1:2, 1:-1:2]
    for variant in (view, kernel.clone().requires_grad_(), kernel.T.contiguous().T):
        before = variant.detach().clone()
        assert torch.equal(hrel_ext.relevance(acts, label_gram=variant, sigma=2.0), expected)
        assert torch.equal(variant, before)
    got = hrel_ext.relevance(acts, label_gram=kernel.float(), sigma=2.0)
    torch.testing.assert_close(got, expected, rtol=0, atol=8e-5)


def test_batch_equals_loop_bit_for_bit_and_no_filters_are_no_scores(rng):
    acts, y = problem(rng)
    kernel = kernels(y)["gaussian"]
    together = hrel_ext.relevance(acts, label_gram=kernel, sigma=2.0)
    alone = [hrel_ext.relevance(acts[:, f : f + 1], label_gram=kernel, sigma=2.0) for f in range(7)]
    assert torch.equal(together, torch.cat(alone))
    for sigma in (2.0, None, "filter"):
        assert hrel_ext.relevance(acts[:, :0], label_gram=kernel, sigma=sigma).shape == (0,)


def test_more_samples_than_any_mini_batch(rng):
    acts, y = problem(rng, 300, 1)
    kernel = kernels(y)["linear"]
    terms = hrel_ext.relevance_terms(acts, label_gram=kernel, sigma=2.0)
    testing.assert_terms_close(terms, terms_by_definition(acts, kernel, 2.0, 1.01), torch.float32, 300, 1.01)
