"""The relevance with gradients: its values, gradcheck in float64, chunks of filters, and a layer trained by it."""
# SPDX-License-Identifier: MIT

import sys

import pytest
import torch

import hrel_ext
from hrel_ext import testing
from hrel_ext.testing import assert_terms_close, oracle

DTYPES = (torch.float32, torch.float64)
module = sys.modules["hrel_ext.relevance"]  # the name in the package is the function


@pytest.fixture(autouse=True)
def one_thread():
    """More of them make eigenvalues of small matrices many times slower on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def problem(rng, num_samples=12, num_filters=3, num_classes=3, dtype=torch.float64):
    acts = torch.randn(num_samples, num_filters, 2, 2, generator=rng, dtype=torch.float64).to(dtype)
    return acts, torch.arange(num_samples) % num_classes


SELECTED = ("n1", "n2", "n33", "n100", "d1", "sliced2d", "expanded0d", "c1", "c37", "some_dead", "offset")


@pytest.mark.parametrize("alpha", (0.9, 1, 1.01, 2))
@pytest.mark.parametrize("case", [case for case in testing.CASES if case.name in SELECTED], ids=str)
def test_values_are_those_of_the_oracle(case, alpha):
    acts, labels = case.make()
    sigma = case.sigma(acts)
    terms = hrel_ext.relevance_terms(acts.requires_grad_(), labels, sigma=sigma, alpha=alpha, differentiable=True)
    assert {term.dtype for term in terms} == {case.dtype} and terms.label_entropy.shape == ()
    terms = type(terms)(*(term.detach() for term in terms))
    assert_terms_close(terms, oracle(acts.detach(), labels, sigma, alpha), case.dtype, len(acts), alpha)


@pytest.mark.parametrize(
    "arguments", ({}, {"sigma": "filter"}, {"label_sigma": 0.8}, {"sigma": torch.tensor(2.0)}), ids=str
)
@pytest.mark.parametrize("dtype", (torch.float16, *DTYPES))
def test_every_width_gives_the_scores_of_the_op(rng, dtype, arguments):
    acts, labels = problem(rng, dtype=dtype)
    expected = hrel_ext.relevance(acts, labels, **arguments)
    got = hrel_ext.relevance(acts.clone().requires_grad_(), labels, differentiable=True, **arguments)
    assert got.requires_grad and not expected.requires_grad and got.dtype == expected.dtype
    torch.testing.assert_close(got.detach(), expected, rtol=0, atol=1e-9 if dtype == torch.float64 else 4e-5)


@pytest.mark.parametrize("alpha", (0.9, 1, 1.01, 1.5, 2, 3))
def test_gradcheck_of_every_term(rng, alpha):
    acts, labels = problem(rng, num_samples=7, num_filters=2)
    sigma = torch.tensor([1.5, 2.5], dtype=torch.float64)

    def terms(acts, sigma):
        found = hrel_ext.relevance_terms(acts, labels, sigma=sigma, alpha=alpha, differentiable=True)
        return found.relevance, found.entropy, found.joint_entropy

    assert torch.autograd.gradcheck(terms, (acts.requires_grad_(), sigma.requires_grad_()))


def test_gradcheck_with_a_label_kernel_and_one_width(rng):
    acts, _ = problem(rng, num_samples=7, num_filters=2)
    kernel = hrel_ext.gram(torch.randn(7, 2, generator=rng, dtype=torch.float64), sigma=1.0)
    sigma = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def relevance(acts, sigma):
        return hrel_ext.relevance(acts, label_gram=kernel, sigma=sigma, differentiable=True)

    assert torch.autograd.gradcheck(relevance, (acts.requires_grad_(), sigma))
    constant = kernel.clone().requires_grad_()
    hrel_ext.relevance(acts, label_gram=constant, sigma=sigma, differentiable=True).sum().backward()
    assert constant.grad is None and sigma.grad.shape == ()


@pytest.mark.parametrize("sigma", (None, "filter"))
def test_a_searched_width_is_a_constant_for_the_gradient(rng, sigma):
    acts, labels = problem(rng)
    acts.requires_grad_()
    width = hrel_ext.kernel_width(acts, labels, per_filter=sigma == "filter")
    (searched,) = torch.autograd.grad(hrel_ext.relevance(acts, labels, sigma=sigma, differentiable=True).sum(), acts)
    (given,) = torch.autograd.grad(hrel_ext.relevance(acts, labels, sigma=width, differentiable=True).sum(), acts)
    torch.testing.assert_close(searched, given)
    assert searched.abs().max() > 0


def test_chunks_of_filters_do_not_change_the_gradients_and_bound_what_is_kept(rng, monkeypatch):
    acts, labels = problem(rng, num_samples=20, num_filters=9)
    acts.requires_grad_()
    sizes, kept = [], []
    gram = module.gram
    monkeypatch.setattr(module, "gram", lambda x, **options: sizes.append(len(x)) or gram(x, **options))

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    results = []
    for limit in (1 << 30, 8 * 20 * 24 * 4, 1):  # bytes: all filters, four at a time, one
        monkeypatch.setattr(module, "MAX_GRADIENT_BYTES", limit)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = hrel_ext.relevance(acts, labels, sigma=2.0, differentiable=True)
        results.append((scores.detach(), *torch.autograd.grad(scores.square().sum(), acts)))
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        torch.testing.assert_close(result[1], results[0][1], rtol=1e-12, atol=1e-14)
    assert sizes == [9] * 2 + [4, 4, 1, 1, 4, 4] + [1] * 18  # forward, and again from the last chunk backward
    assert max(kept) <= acts.numel()  # the maps: no matrix of a filter is kept between the passes


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_finite_where_maps_coincide(rng, dtype):
    acts, labels = problem(rng, dtype=dtype)
    acts[:, 0] = 0  # a dead filter
    acts[3] = acts[7]  # of different classes
    acts.requires_grad_()
    for alpha in (1, 1.01, 2):
        (gradient,) = torch.autograd.grad(
            hrel_ext.relevance(acts, labels, sigma=2.0, alpha=alpha, differentiable=True).sum(), acts
        )
        assert gradient.isfinite().all() and gradient.dtype == dtype
        assert gradient[:, 0].abs().max() < 1e-6 and gradient[:, 1:].abs().max() > 1e-3


def test_no_filters_and_no_gradients_asked_for(rng):
    acts, labels = problem(rng)
    terms = hrel_ext.relevance_terms(acts[:, :0].requires_grad_(), labels, sigma=1.0, differentiable=True)
    assert [tuple(term.shape) for term in terms] == [(0,), (0,), (0,), ()]
    assert not hrel_ext.relevance(acts, labels, differentiable=True).requires_grad
    with torch.no_grad():
        assert not hrel_ext.relevance(acts.requires_grad_(), labels, differentiable=True).requires_grad


def test_inputs_are_not_changed(rng):
    acts, labels = problem(rng)
    sigma = torch.full((3,), 2.0, dtype=torch.float64)
    before = acts.clone()
    leaf, width = acts.clone().requires_grad_(), sigma.clone().requires_grad_()
    hrel_ext.relevance(leaf, labels, sigma=width, differentiable=True).sum().backward()
    assert torch.equal(leaf.detach(), before) and torch.equal(width.detach(), sigma)
    assert leaf.grad.shape == acts.shape and width.grad.shape == (3,)


def test_a_convolution_learns_to_be_relevant():
    torch.manual_seed(1787)
    labels = torch.arange(24) % 2
    images = torch.randn(24, 1, 4, 4)
    images[:, :, 0, 0] += 2.0 * labels[:, None]  # a class is told by one pixel
    convolution = torch.nn.Conv2d(1, 3, 3)
    optimizer = torch.optim.Adam(convolution.parameters(), lr=0.05)

    def score(differentiable):
        maps = convolution(images)
        maps = maps / maps.std()  # else the relevance grows with the scale of the maps alone
        return hrel_ext.relevance(maps, labels, sigma=2.0, differentiable=differentiable).mean()

    before = score(differentiable=False).item()
    for _ in range(20):
        optimizer.zero_grad()
        (-score(differentiable=True)).backward()
        optimizer.step()
    assert score(differentiable=False).item() > before + 0.1
