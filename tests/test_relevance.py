"""The compiled relevance against the float64 oracle, and the properties that hold whatever the numbers are."""
# SPDX-License-Identifier: MIT

import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import hrel_ext
from hrel_ext import _batch, reference, testing
from hrel_ext.testing import assert_terms_close, oracle

ALPHAS = (0.5, 0.9, 1, 1.01, 1.3, 1.5, 2, 2.5, 3)
fixed_seed = hypothesis.settings(derandomize=True, deadline=None, max_examples=40, database=None)


def problem(rng, num_samples=33, num_filters=9, map_shape=(3, 2), num_classes=5, dtype=torch.float32):
    acts = torch.randn(num_samples, num_filters, *map_shape, generator=rng, dtype=torch.float64).to(dtype)
    labels = torch.randint(num_classes, (num_samples,), generator=rng)
    return acts, labels


# The order of the entropy has no part in how memory is read.
PAIRS = [(case, alpha) for case in testing.CASES for alpha in ALPHAS if alpha == 1.01 or case.layout == "contiguous"]


@pytest.mark.parametrize(("case", "alpha"), PAIRS, ids=str)
def test_every_case_agrees_with_the_oracle(case, alpha):
    acts, labels = case.make()
    sigma = case.sigma(acts)
    terms = hrel_ext.relevance_terms(acts, labels, sigma=sigma, alpha=alpha)
    assert_terms_close(terms, oracle(acts, labels, sigma, alpha), case.dtype, case.num_samples, alpha)


def test_result_is_a_float_per_filter_and_the_sum_of_its_terms(rng):
    for dtype in (torch.float32, torch.float64):
        acts, labels = problem(rng, dtype=dtype)
        terms = hrel_ext.relevance_terms(acts, labels, sigma=2.0)
        assert [tuple(term.shape) for term in terms] == [(9,), (9,), (9,), ()]
        assert {term.dtype for term in terms} == {dtype}
        assert terms._fields == reference.RelevanceTerms._fields
        assert torch.equal(hrel_ext.relevance(acts, labels, sigma=2.0), terms.relevance)
        torch.testing.assert_close(terms.relevance, terms.entropy + terms.label_entropy - terms.joint_entropy)


def test_default_order_is_1_01_and_default_width_is_the_width_of_the_layer(rng):
    acts, labels = problem(rng)
    expected = hrel_ext.relevance(acts, labels, sigma="layer", alpha=1.01, label_sigma=0.1)
    assert torch.equal(hrel_ext.relevance(acts, labels), expected)
    assert torch.equal(hrel_ext.relevance(acts, labels, sigma=None), expected)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("sigma", (None, "layer", "filter"))
def test_searched_width_is_the_width_that_kernel_width_returns(rng, sigma, dtype):
    acts, labels = problem(rng, num_samples=100, dtype=dtype)
    width = hrel_ext.kernel_width(acts, labels, per_filter=sigma == "filter", label_sigma=0.5).expand(9)
    terms = hrel_ext.relevance_terms(acts, labels, sigma=sigma, label_sigma=0.5)
    assert_terms_close(terms, oracle(acts, labels, width, 1.01, 0.5), dtype, 100, 1.01)


@pytest.mark.parametrize("sigma", (None, "layer", "filter"))
def test_searched_width_agrees_with_the_oracle_in_float64(rng, sigma):
    acts, labels = problem(rng, num_samples=40, dtype=torch.float64)
    terms = hrel_ext.relevance_terms(acts, labels, sigma=sigma)
    assert_terms_close(terms, oracle(acts, labels, sigma, 1.01), torch.float64, 40, 1.01)


@pytest.mark.parametrize("alpha", (0.9, 1, 1.01, 1.5, 2, 3))
@pytest.mark.parametrize("label_sigma", (0.2, 0.3, 0.5, 1.0, 1e3))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_wide_label_kernel_couples_the_classes(rng, dtype, label_sigma, alpha):
    for num_samples, num_classes in ((33, 5), (100, 10), (12, 12), (7, 1)):
        acts, labels = problem(rng, num_samples, 3, num_classes=num_classes, dtype=dtype)
        terms = hrel_ext.relevance_terms(acts, labels, sigma=2.0, alpha=alpha, label_sigma=label_sigma)
        assert_terms_close(terms, oracle(acts, labels, 2.0, alpha, label_sigma), dtype, num_samples, alpha)


@pytest.mark.parametrize("sigma", (1e-30, 1e-3, 1e30))
@pytest.mark.parametrize("alpha", (0.9, 1, 1.01, 1.5, 2, 3))
def test_extreme_widths_neither_overflow_nor_divide_zero_by_zero(rng, sigma, alpha):
    acts, labels = problem(rng)
    acts[:, 0] = 0  # equal maps have the kernel 1 at any width
    terms = hrel_ext.relevance_terms(acts, labels, sigma=sigma, alpha=alpha)
    assert_terms_close(terms, oracle(acts, labels, sigma, alpha), torch.float32, 33, alpha)


@pytest.mark.parametrize("alpha", (1, 1.01, 2))
def test_distances_that_overflow_float32_are_infinitely_far(rng, alpha):
    acts, labels = problem(rng)
    acts[4] = 1e30
    terms = hrel_ext.relevance_terms(acts, labels, sigma=2.0, alpha=alpha)
    assert_terms_close(terms, oracle(acts, labels, 2.0, alpha), torch.float32, 33, alpha)


@pytest.mark.parametrize("alpha", (1, 1.01, 1.5, 2))
def test_classes_of_very_different_size(rng, alpha):
    sizes = (60, 1, 1, 30, 8)
    acts, _ = problem(rng, 100)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))[torch.randperm(100, generator=rng)]
    terms = hrel_ext.relevance_terms(acts, labels, sigma=2.0, alpha=alpha)
    assert_terms_close(terms, oracle(acts, labels, 2.0, alpha), torch.float32, 100, alpha)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("alpha", (1.01, 1.5))
def test_more_samples_than_any_mini_batch(rng, dtype, alpha):
    acts, labels = problem(rng, 600, 1, num_classes=10, dtype=dtype)
    terms = hrel_ext.relevance_terms(acts, labels, sigma=2.0, alpha=alpha)
    assert_terms_close(terms, oracle(acts, labels, 2.0, alpha), dtype, 600, alpha)


@pytest.mark.parametrize("alpha", (0.9, 1, 1.01, 1.3, 1.5, 2, 3))
def test_closed_forms(alpha):
    labels = torch.tensor([0] * 8 + [1] * 4 + [2] * 4)
    maps = (torch.zeros(16), labels, torch.arange(16))  # constant, the label, all different
    acts = 1e3 * torch.stack(maps, 1)  # (16, 3)
    shares = torch.tensor([1 / 2, 1 / 4, 1 / 4], dtype=torch.float64)
    bits = 1.5 if alpha == 1 else math.log2((shares**alpha).sum().item()) / (1 - alpha)
    terms = hrel_ext.relevance_terms(acts, labels, sigma=1.0, alpha=alpha)
    tolerance = testing.tolerance_bits(torch.float32, 16, alpha)
    assert terms.label_entropy.item() == pytest.approx(bits, abs=tolerance)
    assert terms.entropy.tolist() == pytest.approx([0, bits, 4], abs=tolerance)
    assert terms.joint_entropy.tolist() == pytest.approx([bits, bits, 4], abs=tolerance)
    assert terms.relevance.tolist() == pytest.approx([0, bits, bits], abs=2 * tolerance)


@pytest.mark.parametrize("alpha", (1.01, 1.2, 1.3))
@pytest.mark.parametrize("num_samples", (106, 114, 120, 124, 207, 220, 237, 260))
def test_equal_eigenvalues_do_not_add_up_their_rounding(num_samples, alpha):
    # Far-apart samples: all terms of a sum over the spectrum are equal, so a running sum rounds them the same way.
    acts = 1e3 * torch.arange(float(num_samples))[:, None]
    terms = hrel_ext.relevance_terms(acts, torch.arange(num_samples) % 10, sigma=1.0, alpha=alpha)
    tolerance = testing.tolerance_bits(torch.float32, num_samples, alpha)
    assert terms.entropy.item() == pytest.approx(math.log2(num_samples), abs=tolerance)
    assert terms.joint_entropy.item() == pytest.approx(math.log2(num_samples), abs=tolerance)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("shape", ((), (7,), (3, 5), (2, 3, 5)), ids=str)
def test_memory_layout_does_not_change_the_answer(rng, shape, dtype):
    acts, labels = problem(rng, map_shape=shape, dtype=dtype)
    for layout in testing.LAYOUTS:
        view = testing.lay_out(acts, layout)
        plain = view.clone(memory_format=torch.contiguous_format)
        for sigma in (2.0, "filter"):
            got = hrel_ext.relevance(view, labels, sigma=sigma)
            assert torch.equal(got, hrel_ext.relevance(plain, labels, sigma=sigma)), f"{layout}, sigma = {sigma}"
        # Distances of the whole layer are summed in the order of the memory: the same but for rounding.
        width, expected = hrel_ext.kernel_width(view, labels), hrel_ext.kernel_width(plain, labels)
        torch.testing.assert_close(width, expected, rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_address_that_is_not_a_multiple_of_the_vector_width(rng):
    acts, labels = problem(rng)
    memory = torch.full((acts.numel() + 1,), torch.nan)
    memory[1:] = acts.flatten()
    shifted = memory[1:].view(acts.shape)
    assert torch.equal(hrel_ext.relevance(shifted, labels, sigma=2.0), hrel_ext.relevance(acts, labels, sigma=2.0))


def test_spatial_axes_are_one_vector(rng):
    acts, labels = problem(rng, map_shape=(2, 3, 5))
    expected = hrel_ext.relevance(acts, labels, sigma=2.0)
    for shape in ((30,), (6, 5), (2, 15), (1, 30), (5, 1, 6)):
        assert torch.equal(hrel_ext.relevance(acts.reshape(33, 9, *shape), labels, sigma=2.0), expected)
    rows = hrel_ext.relevance(acts[..., 0, 0, 0], labels, sigma=2.0)
    assert torch.equal(rows, hrel_ext.relevance(acts[..., :1, 0, 0], labels, sigma=2.0))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_is_converted_to_float32(rng, dtype):
    acts, labels = problem(rng, dtype=dtype)
    for sigma in (2.0, None, "filter"):
        relevance = hrel_ext.relevance(acts, labels, sigma=sigma)
        assert relevance.dtype == torch.float32
        assert torch.equal(relevance, hrel_ext.relevance(acts.float(), labels, sigma=sigma))


def test_widths_may_have_any_floating_dtype(rng):
    acts, labels = problem(rng)
    expected = hrel_ext.relevance(acts, labels, sigma=2.0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert torch.equal(hrel_ext.relevance(acts, labels, sigma=torch.full((9,), 2.0, dtype=dtype)), expected)
    assert torch.equal(hrel_ext.relevance(acts, labels, sigma=2), expected)


@pytest.mark.parametrize("dtype", (torch.uint8, torch.int8, torch.int16, torch.int32))
def test_labels_may_have_any_integer_dtype(rng, dtype):
    acts, labels = problem(rng)
    assert torch.equal(hrel_ext.relevance(acts, labels.to(dtype)), hrel_ext.relevance(acts, labels))


def test_class_ids_are_compared_for_equality_only(rng):
    acts, labels = problem(rng)
    expected = hrel_ext.relevance_terms(acts, labels, sigma=2.0)
    increasing = torch.tensor([0, 7, 1000, 2**40, 2**62])[labels]
    assert torch.equal(hrel_ext.relevance(acts, increasing, sigma=2.0), expected.relevance)
    shuffled = torch.tensor([3, 2**62, 0, 1, 17])[labels]
    assert_terms_close(
        hrel_ext.relevance_terms(acts, shuffled, sigma=2.0), oracle(acts, labels, 2.0, 1.01), torch.float32, 33, 1.01
    )


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("num_samples", (33, 128))
@pytest.mark.parametrize("alpha", (0.5, 1, 1.01, 1.5, 2, 3))
def test_batch_equals_loop_bit_for_bit(rng, num_samples, alpha, dtype):
    acts, labels = problem(rng, num_samples, 11, dtype=dtype)
    acts[:, 3] = 0  # a neighbour whose spectrum is special
    sigma = torch.rand(11, generator=rng) + 1
    together = hrel_ext.relevance_terms(acts, labels, sigma=sigma, alpha=alpha)
    for f in range(11):
        alone = hrel_ext.relevance_terms(acts[:, f : f + 1], labels, sigma=sigma[f : f + 1], alpha=alpha)
        for name in ("relevance", "entropy", "joint_entropy"):
            assert getattr(alone, name)[0].item() == getattr(together, name)[f].item(), f"{name} of filter {f}"


@pytest.fixture
def restore_num_threads():
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("sigma", (2.0, None, "filter"))
def test_number_of_threads_does_not_change_a_bit(rng, sigma, restore_num_threads):
    acts, labels = problem(rng, num_filters=50)
    results = []
    for num_threads in (1, 2, 3, 1):
        torch.set_num_threads(num_threads)
        results.append(hrel_ext.relevance(acts, labels, sigma=sigma))
    assert all(torch.equal(result, results[0]) for result in results)


def test_four_python_threads_at_once_get_the_same_bits(rng):
    problems = [problem(rng, num_samples, 20) for num_samples in (33, 64, 97, 100)]
    expected = [hrel_ext.relevance(acts, labels) for acts, labels in problems]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda p: hrel_ext.relevance(*p), problems * 8))
    assert all(torch.equal(result, expected[i % 4]) for i, result in enumerate(results))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # multi-threaded, and forks
def test_a_forked_child_computes_although_the_workers_stayed_with_its_parent(rng, restore_num_threads):
    acts, labels = problem(rng, num_filters=50)
    operands = testing.relevance_operands(acts, labels, 2.0, 1.01)
    torch.set_num_threads(2)
    expected = torch.ops.hrel_ext.relevance(*operands)
    child = os.fork()
    if child == 0:  # the op alone: PyTorch's own parallel loops would wait for workers that are not there
        result = torch.ops.hrel_ext.relevance(*operands)
        os._exit(0 if [r.tolist() for r in result] == [e.tolist() for e in expected] else 1)
    end = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_inputs_are_not_changed(rng, layout):
    acts, labels = problem(rng)
    acts, sigma = testing.lay_out(acts, layout), torch.rand(9, generator=rng) + 1
    copies = acts.clone(), labels.clone(), sigma.clone()
    versions = acts._version, labels._version, sigma._version
    for width in (sigma, None, "filter"):
        hrel_ext.relevance(acts, labels, sigma=width)
    assert all(torch.equal(a, b) for a, b in zip((acts, labels, sigma), copies, strict=True))
    assert (acts._version, labels._version, sigma._version) == versions


def test_result_does_not_share_memory_with_the_next(rng):
    acts, labels = problem(rng)
    first = hrel_ext.relevance(acts, labels, sigma=2.0)
    kept = first.clone()
    hrel_ext.relevance(acts + 1e3 * acts, labels, sigma=2.0)
    assert torch.equal(first, kept)


def test_acts_that_require_grad_are_detached(rng):
    acts, labels = problem(rng)
    expected = hrel_ext.relevance_terms(acts, labels)
    tracked = hrel_ext.relevance_terms(acts.clone().requires_grad_(), labels)
    assert not any(term.requires_grad for term in tracked)
    assert all(torch.equal(a, b) for a, b in zip(tracked, expected, strict=True))
    through_a_graph = acts.clone().requires_grad_() * 1.0
    assert not hrel_ext.relevance(through_a_graph, labels, sigma=torch.ones(9, requires_grad=True)).requires_grad


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32, torch.float64))
@pytest.mark.parametrize("shape", ((6, 0), (6, 0, 4), (6, 0, 4, 4)), ids=str)
def test_no_filters_are_no_scores(shape, dtype):
    acts, labels = torch.empty(shape, dtype=dtype), torch.arange(6) % 2
    for sigma in (1.0, torch.empty(0), None, "filter"):
        terms = hrel_ext.relevance_terms(acts, labels, sigma=sigma)
        assert [tuple(term.shape) for term in terms] == [(0,), (0,), (0,), ()]
        assert terms.relevance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert terms.label_entropy.item() == pytest.approx(1, abs=1e-6)


@st.composite
def small_problems(draw):
    """A problem of up to 12 samples: acts (N, F, D) float32 with some equal samples, labels (N,), sigma (F,), alpha."""
    num_samples, num_filters = draw(st.integers(1, 12)), draw(st.integers(1, 10))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    distinct = torch.randn(num_samples, num_filters, draw(st.integers(1, 9)), generator=rng)
    choice = draw(st.lists(st.integers(0, num_samples - 1), min_size=num_samples, max_size=num_samples))
    acts = distinct[choice] * 10.0 ** draw(st.integers(-4, 4))
    labels = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=num_samples, max_size=num_samples)))
    mean = torch.cdist(acts.transpose(0, 1), acts.transpose(0, 1)).mean((1, 2))  # (F,)
    sigma = torch.where(mean > 0, mean, 1.0) * draw(st.sampled_from((0.1, 0.5, 1.0, 3.0, 30.0)))
    # From 0.9 up: below it the oracle, too, rounds its zero eigenvalues to eps^alpha.
    alpha = draw(st.one_of(st.sampled_from(ALPHAS[1:]), st.floats(0.9, 6.0)))
    return acts, labels, sigma, alpha


@fixed_seed
@hypothesis.given(small_problems())
def test_any_small_problem_agrees_with_the_oracle(small):
    acts, labels, sigma, alpha = small
    terms = hrel_ext.relevance_terms(acts, labels, sigma=sigma, alpha=alpha)
    assert_terms_close(terms, oracle(acts, labels, sigma, alpha), torch.float32, len(labels), alpha)
    exact = hrel_ext.relevance_terms(acts.double(), labels, sigma=sigma.double(), alpha=alpha)
    assert_terms_close(exact, oracle(acts, labels, sigma, alpha), torch.float64, len(labels), alpha)


@fixed_seed
@hypothesis.given(small_problems(), st.randoms(use_true_random=False), st.integers(-20, 20))
def test_order_of_samples_names_of_classes_and_scale_do_not_matter(small, random, exponent):
    acts, labels, sigma, alpha = small
    expected = hrel_ext.relevance_terms(acts.double(), labels, sigma=sigma.double(), alpha=alpha)
    order = random.sample(range(len(labels)), len(labels))
    names = torch.tensor(random.sample(range(100), 5))
    scale = 2.0**exponent  # exact, so that the distances scale exactly
    terms = hrel_ext.relevance_terms((acts * scale)[order], names[labels][order], sigma=sigma * scale, alpha=alpha)
    assert_terms_close(terms, expected, torch.float32, len(labels), alpha)


@fixed_seed
@hypothesis.given(small_problems())
def test_joint_entropy_is_at_least_each_of_the_two(small):
    acts, labels, sigma, alpha = small
    terms = hrel_ext.relevance_terms(acts, labels, sigma=sigma, alpha=alpha)
    slack = 2 * testing.tolerance_bits(torch.float32, len(labels), alpha)
    assert (terms.joint_entropy >= torch.maximum(terms.entropy, terms.label_entropy) - slack).all()
    shannon = hrel_ext.relevance(acts, labels, sigma=sigma, alpha=1)
    assert (shannon >= -slack).all()  # guaranteed in the Shannon limit only


@pytest.mark.parametrize("num_samples", (1, 5))
def test_labels_and_widths_of_any_stride(rng, num_samples):
    acts, _ = problem(rng, num_samples, 1)
    expected = hrel_ext.relevance(acts, torch.full((num_samples,), 3), sigma=torch.full((1,), 2.0))
    repeated = hrel_ext.relevance(acts, torch.tensor(3).expand(num_samples), sigma=torch.tensor(2.0).expand(1))
    assert torch.equal(repeated, expected)


class Dispatches(TorchDispatchMode):
    """Counts the torch ops of a call, but for views and for what our own ops do inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("arguments", "most"),
    (
        ({"sigma": 2.0}, 11),
        ({"sigma": torch.full((9,), 2.0)}, 10),
        ({"sigma": 2.0, "label_sigma": 1.0}, 14),
        ({"sigma": None}, 17),
        ({"sigma": "filter"}, 16),
    ),
    ids=str,
)
def test_a_call_dispatches_few_ops(rng, monkeypatch, arguments, most):
    # On CUDA nearly each is a launch: microseconds of the host for what the device does in one.
    monkeypatch.setattr(_batch.Batch, "on_host", False)
    acts, labels = problem(rng)
    with Dispatches() as dispatches:
        hrel_ext.relevance(acts, labels, **arguments)
    assert dispatches.names.count("hrel_ext::relevance") == 1  # the count sees what is called
    assert len(dispatches.names) <= most, dispatches.names


@pytest.mark.parametrize(("arguments", "most"), (({"sigma": 2.0}, 5), ({"sigma": None}, 9), ({"sigma": "filter"}, 7)))
def test_one_call_does_the_work_on_the_cpu(rng, arguments, most):
    acts, labels = problem(rng)
    with Dispatches() as dispatches:
        hrel_ext.relevance(acts, labels, **arguments)
    assert 1 < len(dispatches.names) <= most, dispatches.names  # what allocates the results
    assert not any(name.startswith("hrel_ext::") for name in dispatches.names)


@pytest.mark.parametrize("alpha", (1, 1.01, 1.2))
@pytest.mark.parametrize("num_samples", (64, 100, 129))
def test_eigenvalues_that_rounding_takes_below_0_do_not_meet_a_pole(rng, num_samples, alpha):
    # Each of 500 filters splits the samples anew: rank two, and one in five has an eigenvalue close to the first pole.
    acts = 1e3 * torch.randint(2, (num_samples, 500), generator=rng).float()
    labels = torch.arange(num_samples) % 10
    terms = hrel_ext.relevance_terms(acts, labels, sigma=1.0, alpha=alpha)
    exact = hrel_ext.relevance_terms(acts.double(), labels, sigma=1.0, alpha=alpha)
    for name in ("entropy", "joint_entropy"):
        error = (getattr(terms, name).double() - getattr(exact, name)).abs().max().item()
        assert error <= testing.tolerance_bits(torch.float32, num_samples, alpha)


@pytest.mark.parametrize("num_samples", (64, 100, 129))
def test_matrices_of_signs_have_no_entropy(rng, num_samples):
    signs = 2.0 * torch.randint(2, (300, num_samples), generator=rng) - 1
    bits = torch.ops.hrel_ext.matrix_entropy(signs[:, :, None] * signs[:, None, :], 1.01)
    assert bits.abs().max() <= testing.tolerance_bits(torch.float32, num_samples, 1.01)
