"""Joint relevance of sets of filters, and the greedy selections by it, against float64 brute force."""
# SPDX-License-Identifier: MIT

import math
import os
import re

import numpy as np
import pytest
import torch

import hrel_ext
from hrel_ext import selection
from hrel_ext.testing import CASES, left_of_copies, oracle, tolerance_bits
from hrel_ext.zoo.models import lenet5

CHECKED = ("n1", "n2", "n33", "n129", "f7", "c1", "c37", "sliced2d", "transposed3d", "contiguous0d", "offset", "dead")
CHECKED += ("near_duplicates", "some_dead", "outlier", "far_outlier", "narrow_outlier", "drawn_labels", "huge_sigma")


def exact_joint(acts, labels, subset, sigma, alpha=1.01, label_sigma=0.1):
    """I(T_S; Y) in float64 by the oracle: maps over their widths, side by side, are one map of width 1."""
    if len(subset) == 0:
        return 0.0
    maps = acts.double().flatten(2) if acts.dim() > 2 else acts.double()[:, :, None]  # (N, F, D)
    together = (maps / sigma.double()[:, None])[:, list(subset)].flatten(1)[:, None]  # (N, 1, |S| D)
    return oracle(together, labels, 1.0, alpha, label_sigma).relevance.item()


def brute_force(batches, keep, method, sigma):
    """Greedy selection as it is defined, in float64, one set after the other: order and objective."""

    def objective(subset):
        return sum(exact_joint(acts, labels, sorted(subset), sigma) for acts, labels in batches) / len(batches)

    num_filters = batches[0][0].shape[1]
    order, reached, distinct = [], [], []
    left_of = left_of_copies(batches, sigma)
    for f in sorted(range(num_filters), key=lambda f: -objective([f])):  # stable: of equal ones the lower index
        distinct += [f] if (left_of[f, distinct] > 0.03).all() else []
    kept = set() if method == "forward" else set(range(num_filters))
    while len(kept) != keep:
        left = set(range(num_filters)) - kept if method == "forward" else kept
        copies = left - set(distinct)
        left = sorted((left - copies or copies) if method == "forward" else (copies or left))
        values = {f: objective(kept ^ {f}) for f in left}
        best = max(left, key=values.__getitem__)
        others = [value for f, value in values.items() if f != best]
        assert not others or values[best] - max(others) > 2e-4, "the problem has a tie, which float32 may break"
        order.append(best)
        reached.append(values[best])
        kept ^= {best}
    return sorted(kept), order, reached


def problem(rng, num_batches=2, n=40, f=6, dtype=torch.float32):
    """Filters of different strength that tell of the class in different ways: no ties."""
    batches = []
    directions = torch.randn(4, f, 3, generator=rng, dtype=torch.float64) * torch.linspace(0.3, 1.2, f)[:, None]
    for _ in range(num_batches):
        labels = torch.randint(4, (n,), generator=rng)
        noise = torch.randn(n, f, 3, generator=rng, dtype=torch.float64)
        batches.append(((directions[labels] + 0.3 * noise).to(dtype), labels))
    return batches


@pytest.mark.parametrize("case", [case for case in CASES if case.name in CHECKED], ids=str)
def test_joint_relevance_agrees_with_the_oracle(case):
    acts, labels = case.make()
    sigma = case.sigma(acts)
    tolerance = 2 * tolerance_bits(case.dtype, len(acts), 1.01)
    num_filters = acts.shape[1]
    for subset in ([0], [num_filters - 1, 1], range(num_filters)):
        value = hrel_ext.joint_relevance(acts, labels, subset, sigma=sigma)
        assert value.shape == () and value.dtype == case.dtype and value.device == acts.device
        assert abs(value.item() - exact_joint(acts, labels, subset, sigma)) <= tolerance
    alone = torch.stack([hrel_ext.joint_relevance(acts, labels, [f], sigma=sigma) for f in range(num_filters)])
    torch.testing.assert_close(alone, hrel_ext.relevance(acts, labels, sigma=sigma), rtol=0, atol=2 * tolerance)


@pytest.mark.parametrize("label_sigma", (0.1, 0.5, 1.0))
@pytest.mark.parametrize("alpha", (0.5, 0.999999, 1, 1 + 1e-9, 1.01, 1.3, 1.5, 2, 3, 60.0))
def test_any_order_and_width_of_the_label_kernel(rng, alpha, label_sigma):
    acts, labels = problem(rng, 1, 37, 5, torch.float64)[0]
    sigma = torch.linspace(1, 2, 5, dtype=torch.float64)
    options = {"sigma": sigma, "alpha": alpha, "label_sigma": label_sigma}
    exact = exact_joint(acts, labels, [0, 2, 3], sigma, alpha, label_sigma)
    # The oracle itself takes the literal quotient beyond |alpha - 1| = 0.3 and loses 1e-16 / |alpha - 1| near 1.
    tolerance = 2 * tolerance_bits(torch.float64, 37, alpha)
    assert abs(hrel_ext.joint_relevance(acts, labels, [0, 2, 3], **options).item() - exact) <= tolerance
    given = hrel_ext.conditional_relevance(acts, labels, [0, 2], **options)
    before = exact_joint(acts, labels, [0, 2], sigma, alpha, label_sigma)
    assert abs(given[3].item() - (exact - before)) <= 2 * tolerance
    single = hrel_ext.joint_relevance(acts.float(), labels, [0, 2, 3], **options | {"sigma": sigma.float()})
    assert abs(single.item() - exact) <= 2 * tolerance_bits(torch.float32, 37, alpha) + 1e-6


def test_all_filters_together_are_the_output_of_the_layer(rng):
    acts, labels = problem(rng, 1, 50, 7)[0]
    layer = hrel_ext.relevance(acts.flatten(1)[:, None], labels)[0]  # (N, 1, F D), at its own aligned width
    torch.testing.assert_close(hrel_ext.joint_relevance(acts, labels, range(7)), layer, rtol=0, atol=4e-5)
    wide = hrel_ext.relevance(acts.flatten(1)[:, None], labels, sigma=2.5)[0]
    torch.testing.assert_close(hrel_ext.joint_relevance(acts, labels, range(7), sigma=2.5), wide, rtol=0, atol=4e-5)


@pytest.mark.parametrize("sigma", (None, "layer", "filter", 1.3))
def test_chain_rule(rng, sigma):
    acts, labels = problem(rng, 1, dtype=torch.float64)[0]
    total, held = 0.0, []
    for f in (4, 0, 5, 2):
        total += hrel_ext.conditional_relevance(acts, labels, held, sigma=sigma)[f].item()
        held.append(f)
    assert total == pytest.approx(
        hrel_ext.joint_relevance(acts, labels, torch.tensor(held), sigma=sigma).item(), abs=1e-9
    )


def test_given_nothing_it_is_the_relevance_and_given_itself_nothing(rng):
    acts, labels = problem(rng, 1)[0]
    nothing = hrel_ext.conditional_relevance(acts, labels, [])
    torch.testing.assert_close(nothing, hrel_ext.relevance(acts, labels), rtol=0, atol=4e-5)
    given = hrel_ext.conditional_relevance(acts, labels, [3, 1])
    assert given.dtype == torch.float32 and (given[[1, 3]] == 0).all() and (given[[0, 2, 4, 5]] != 0).all()
    assert (hrel_ext.conditional_relevance(acts, labels, range(6)) == 0).all()
    assert hrel_ext.joint_relevance(acts, labels, []) == 0


def two_bits(rng, weak=0.9, copy=lambda maps: maps):
    """A filter for one bit of the class, its copy, and a weaker one for the other bit; (64, 3)."""
    labels = torch.arange(64) % 4
    noise = 0.05 * torch.randn(64, 2, generator=rng)
    strong, other = (labels // 2 + noise[:, 0]), weak * (labels % 2 + noise[:, 1])
    return torch.stack([strong, copy(strong), other], dim=1), labels


@pytest.mark.parametrize("method", selection.METHODS)
def test_two_copies_of_one_good_filter_are_not_both_kept(rng, method):
    acts, labels = two_bits(rng)
    alone = hrel_ext.relevance(acts, labels, sigma=0.4)
    assert alone[0] == alone[1] > alone[2]  # so that the two most relevant filters are the copies
    result = hrel_ext.select_filters((acts, labels), keep=2, method=method, sigma=0.4)
    assert result.kept.tolist() == [0, 2]
    given = hrel_ext.conditional_relevance(acts, labels, [0], sigma=0.4)
    assert given[1] == 0 and given[2] > 0.9 * alone[2]


@pytest.mark.parametrize("method", selection.METHODS)
@pytest.mark.parametrize("scale", (1, -1, 0.3, 3))
def test_with_a_wide_kernel_a_copy_of_any_scale_waits_for_a_weak_filter(rng, scale, method):
    acts, labels = two_bits(rng, weak=0.2, copy=lambda maps: scale * maps + 5)
    best, copy = (1, 0) if scale == 3 else (0, 1)
    joint = hrel_ext.joint_relevance(acts, labels, [0, 1], sigma=8.0)
    narrower = hrel_ext.relevance(acts, labels, sigma=8.0 / math.sqrt(1 + scale**2))[0]  # which is all that a copy does
    torch.testing.assert_close(joint, narrower, rtol=0, atol=4e-5)
    weak = hrel_ext.joint_relevance(acts, labels, [best, 2], sigma=8.0)
    assert joint > weak  # so that the estimate alone would keep both copies
    for held in (0, 1):
        given = hrel_ext.conditional_relevance(acts, labels, [held], sigma=8.0)
        assert given[0] == given[1] == 0 and given[2] > 0
    assert hrel_ext.select_filters((acts, labels), keep=2, method=method, sigma=8.0).kept.tolist() == [best, 2]
    last = hrel_ext.select_filters((acts, labels), keep=3 if method == "forward" else 2, method=method, sigma=8.0).order
    assert last[-1] == copy


def doubled(batches, copy):
    """Every filter and, behind all of them, its copy."""
    return [(torch.cat([acts, copy(acts)], dim=1), labels) for acts, labels in batches]


def copies(batches):
    """Which filters are copies of which, (F, F)."""
    tasks = [selection._task(*batch, None, sigma=1.0, alpha=1.01, label_sigma=0.1) for batch in batches]
    return selection._copies(tasks, np.arange(len(tasks[0].exponents)))


def pairs(kept, num_filters):
    """How many filters are kept together with their copy."""
    return len(kept) - len(set((kept % num_filters).tolist()))


@pytest.mark.parametrize("sigma", ("layer", "filter", 8.0))
@pytest.mark.parametrize("method", selection.METHODS)
def test_of_a_layer_doubled_exactly_scaled_or_with_noise_no_pair_is_kept(rng, method, sigma):
    batches = problem(rng, f=8)
    spread = batches[0][0].std(dim=(0, 2), keepdim=True)
    made = {
        "exact": lambda acts: acts,
        "scaled": lambda acts: 0.7 * acts,
        "turned": lambda acts: acts.flip(2),
        "noisy": lambda acts: acts + 0.01 * spread * torch.randn(acts.shape, generator=rng),
        "noisier": lambda acts: acts + 0.05 * spread * torch.randn(acts.shape, generator=rng),
    }
    for name, copy in made.items():
        kept = hrel_ext.select_filters(doubled(batches, copy), keep=8, method=method, sigma=sigma).kept
        assert pairs(kept, 8) == 0, name
    other = doubled(batches, lambda acts: acts + spread * torch.randn(acts.shape, generator=rng))
    assert not copies(other)[8:, :8].any()


@pytest.mark.parametrize("case", [case for case in CASES if case.name in CHECKED], ids=str)
def test_copies_are_found_as_defined(rng, case):
    acts, labels = case.make()
    other = acts + 0.2 * acts.std() * torch.randn(acts.shape, generator=rng, dtype=acts.dtype)
    batches = [(torch.cat([acts, 3 * maps, 0 * acts[:, :1]], dim=1), labels) for maps in (acts, other)]
    found = copies(batches)
    assert (found == (left_of_copies(batches, torch.ones(len(found))) <= 0.03).numpy()).all()
    assert found.diagonal().all() and found[-1].all()  # a dead filter is a copy of any
    assert (found[:-1, -1] == found[:-1].all(1)).all()  # and a filter that is not dead no copy of it


@pytest.mark.skipif(
    not os.environ.get("HREL_DATA_DIR"), reason="needs MNIST: HREL_DATA_DIR is not set to a folder that holds MNIST/raw"
)
def test_of_a_doubled_layer_of_a_network_trained_on_mnist_no_pair_is_kept():
    datasets = pytest.importorskip("torchvision.datasets")
    digits = datasets.MNIST(os.environ["HREL_DATA_DIR"], train=False)
    images, labels = digits.data[:3200, None] / 255, digits.targets[:3200]  # (N, 1, 28, 28), (N,)
    torch.manual_seed(0)
    network = lenet5()
    optimizer = torch.optim.Adam(network.parameters())
    for some in torch.arange(200, 3200).split(100):
        loss = torch.nn.functional.cross_entropy(network(images[some]), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1  # so that the filters know the digits
    with torch.no_grad():
        maps = network[:4](images[:200])  # (200, 50, 8, 8), of conv2
    batches = list(zip(maps.split(100), labels[:200].split(100), strict=True))
    for scale in (1, -0.7):
        for sigma in ("layer", "filter"):
            twice = doubled(batches, lambda acts, scale=scale: scale * acts)
            assert pairs(hrel_ext.select_filters(twice, keep=20, sigma=sigma).kept, 50) == 0
    assert (copies(batches) == np.eye(50)).all()  # the network's own filters are distinct


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("method", selection.METHODS)
def test_selection_equals_brute_force(rng, method, dtype):
    batches, sigma = problem(rng, dtype=dtype), torch.linspace(4, 5, 8, dtype=dtype)
    batches = [(torch.cat([0.8 * acts[:, [1, 4]], acts], dim=1), labels) for acts, labels in batches]  # two copies
    for keep in (1, 3, 7, 8):
        kept, order, reached = brute_force(batches, keep, method, sigma)
        result = hrel_ext.select_filters(iter(batches), keep=keep, method=method, sigma=sigma)
        assert result.kept.tolist() == kept and result.order.tolist() == order
        assert result.kept.dtype == result.order.dtype == torch.int64
        expected = torch.tensor(reached, dtype=torch.float64)
        tolerance = 2 * tolerance_bits(dtype, 40, 1.01)
        torch.testing.assert_close(result.objective, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", selection.METHODS)
def test_the_objective_is_the_joint_relevance_and_permuting_filters_permutes_the_result(rng, method):
    (acts, labels) = problem(rng, 1, 45, 9)[0]
    result = hrel_ext.select_filters((acts, labels), keep=4, method=method)
    value = hrel_ext.joint_relevance(acts, labels, result.kept)
    assert abs(result.objective[-1].item() - value.item()) <= 1e-6
    shuffle = torch.randperm(9, generator=rng)
    shuffled = hrel_ext.select_filters((acts[:, shuffle], labels), keep=4, method=method)
    assert torch.equal(shuffle[shuffled.order], result.order)


def test_a_filter_that_hides_all_others_leaves_no_trace_when_it_is_removed(rng):
    acts, labels = problem(rng, 1)[0]
    huge = acts.clone()
    huge[:, 2] *= 1e9  # of no use: its kernel is the identity, of 1e18 times the distances of the others
    for dtype in (torch.float32, torch.float64):
        task = selection._task(huge.to(dtype), labels, None, sigma=1.0, alpha=1.01, label_sigma=0.1)
        together = selection._sum_of(task, range(6)).plus(-task.exponents[2])
        exact = task.exponents[[0, 1, 3, 4, 5]].double().sum(0)
        left = together.value.double() + together.rest.double()
        rounding = 1e-15 if dtype == torch.float64 else 1e-10  # float32 in one float would leave 1e-4 of the 1024
        torch.testing.assert_close(left, exact, rtol=rounding, atol=0)
        assert (task.exponents >= -selection.LARGEST_EXPONENT).all()
        without = task.relevances_with(selection._sum_of(task, range(6)), torch.tensor([2]).numpy(), without=True)
        expected = exact_joint(huge, labels, [0, 1, 3, 4, 5], torch.ones(6))
        assert abs(without.item() - expected) <= 2 * tolerance_bits(dtype, 40, 1.01)


@pytest.mark.parametrize("method", selection.METHODS)
def test_equal_sets_are_told_apart_by_the_filters_own_relevance_then_by_the_index(rng, method):
    acts, labels = problem(rng, 1, 40, 4)[0]
    acts = acts[:, [0, 3, 3, 0]]  # a weak filter twice and a strong one twice
    narrow = hrel_ext.select_filters((acts, labels), keep=3, method=method, sigma=1e-3)
    assert (
        narrow.objective.max() - narrow.objective.min() < 1e-5
    )  # every set tells the samples apart, so every set is as good
    assert narrow.kept.tolist() == [0, 1, 2]
    order = hrel_ext.select_filters(
        (acts, labels), keep=4 if method == "forward" else 1, method=method, sigma=1e-3
    ).order
    assert order.tolist() == ([0, 1, 2, 3] if method == "forward" else [3, 2, 1])
    constant = hrel_ext.select_filters((torch.ones(6, 3), torch.arange(6)), keep=1, method=method)
    assert constant.kept.tolist() == [0]


def test_a_tie_is_broken_by_the_relevance_of_its_own():
    labels = torch.arange(8) % 4
    acts = torch.stack([torch.arange(8) // 7, labels // 2, labels], dim=1).float()  # the last one tells all
    alone = hrel_ext.relevance(acts, labels, sigma=0.01)
    assert alone[2] > alone[1] > alone[0] > 0
    labels_only = hrel_ext.joint_relevance(acts, labels, [2], sigma=0.01)
    for subset in ([0, 2], [1, 2]):  # so that both are worth the same to the last one
        assert abs(hrel_ext.joint_relevance(acts, labels, subset, sigma=0.01) - labels_only) <= 4e-5
    assert hrel_ext.select_filters((acts, labels), keep=2, sigma=0.01).order.tolist() == [2, 1]
    assert hrel_ext.select_filters((acts, labels), keep=2, method="backward", sigma=0.01).order.tolist() == [0]


@pytest.mark.parametrize("method", selection.METHODS)
def test_result_does_not_depend_on_threads_layout_or_memory(rng, method, monkeypatch):
    batches = problem(rng, 2, 20, 11)
    before, num_threads = [acts.clone() for acts, _ in batches], torch.get_num_threads()
    expected = hrel_ext.select_filters(batches, keep=5, method=method)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for limit in (1, 20 * 20 * 4 * 5):
                monkeypatch.setattr(selection._ops, "MAX_CHUNK_BYTES", limit)
                again = hrel_ext.select_filters(batches, keep=5, method=method)
                assert torch.equal(again.order, expected.order) and torch.equal(again.objective, expected.objective)
    finally:
        torch.set_num_threads(num_threads)
    turned = [(acts.transpose(0, 2).contiguous().transpose(0, 2), labels) for acts, labels in batches]
    assert torch.equal(hrel_ext.select_filters(turned, keep=5, method=method).objective, expected.objective)
    assert all(torch.equal(acts, copy) for (acts, _), copy in zip(batches, before, strict=True))


def test_one_filter_half_precision_and_inputs_that_require_grad(rng):
    acts, labels = problem(rng, 1, 20, 1)[0]
    for method, steps in (("forward", [0]), ("backward", [])):
        result = hrel_ext.select_filters([(acts, labels)], keep=1, method=method)
        assert result.kept.tolist() == [0] and result.order.tolist() == steps and len(result.objective) == len(steps)
    half = acts.half().requires_grad_()
    value = hrel_ext.joint_relevance(half, labels, [0], sigma=1.0)
    assert value.dtype == torch.float32 and not value.requires_grad
    assert value == hrel_ext.joint_relevance(half.detach().float(), labels, [0], sigma=1.0)
    assert hrel_ext.conditional_relevance(torch.empty(20, 0, 3), labels, []).shape == (0,)


@pytest.mark.parametrize("exponent", (-60, 60))
def test_squares_neither_underflow_nor_overflow(rng, exponent):
    acts, labels = problem(rng, 1)[0]
    expected = hrel_ext.joint_relevance(acts, labels, [1, 4], sigma=1.5)
    scaled = hrel_ext.joint_relevance(acts * 2.0**exponent, labels, [1, 4], sigma=1.5 * 2.0**exponent)
    assert torch.equal(scaled, expected)


def raises(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


ACTS, LABELS = torch.arange(24.0).reshape(8, 3), torch.arange(8)
SETS = (
    ([0, 3], ValueError, "must hold indices of filters, 0 to F - 1 = 2, got 3"),
    ([-1], ValueError, "must hold indices of filters, 0 to F - 1 = 2, got -1"),
    ([1, 0, 1], ValueError, "must hold each filter once, got 1 2 times"),
    ([0.0], TypeError, "must hold the indices of filters, integers, got [0.0]"),
    (2, TypeError, "must hold the indices of filters, integers, got 2"),
    (torch.tensor([True, False]), TypeError, "must hold the indices of filters, integers, got tensor([ True, False])"),
)


@pytest.mark.parametrize(("subset", "error", "message"), SETS)
def test_sets_that_are_none(subset, error, message):
    with raises(error, f"subset {message}"):
        hrel_ext.joint_relevance(ACTS, LABELS, subset)
    with raises(error, f"given {message}"):
        hrel_ext.conditional_relevance(ACTS, LABELS, subset)


def test_arguments_of_the_selection():
    for keep in (0, 4):
        with raises(ValueError, f"keep must be between 1 and the number of filters, F = 3, got {keep}"):
            hrel_ext.select_filters((ACTS, LABELS), keep=keep)
    with raises(TypeError, "keep must be an int, got float"):
        hrel_ext.select_filters((ACTS, LABELS), keep=2.0)
    with raises(ValueError, 'method must be "forward" or "backward", got \'both\''):
        hrel_ext.select_filters((ACTS, LABELS), keep=2, method="both")
    with raises(ValueError, "batches must hold at least one mini-batch, got none"):
        hrel_ext.select_filters([], keep=2)
    for acts in (ACTS[:5], ACTS[:, :2]):
        n, f = acts.shape
        message = "batches must all have N = 8 samples and F = 3 filters like the first, got"
        with raises(ValueError, f"{message} N = {n} and F = {f} in batch 1"):
            hrel_ext.select_filters([(ACTS, LABELS), (acts, LABELS[:n])], keep=2)


def test_values_are_checked_in_every_function():
    bad = ACTS.clone()
    bad[3, 1] = math.nan
    calls = (
        lambda acts, labels, **options: hrel_ext.joint_relevance(acts, labels, [0, 1], **options),
        lambda acts, labels, **options: hrel_ext.conditional_relevance(acts, labels, [0], **options),
        lambda acts, labels, **options: hrel_ext.select_filters((acts, labels), keep=1, **options),
    )
    for call in calls:
        for value in (math.nan, math.inf):
            bad[3, 1] = value
            with raises(ValueError, "acts must be finite, filter 1 holds NaN or Inf"):
                call(bad, LABELS, sigma=1.0)
        with raises(ValueError, "labels must be class ids >= 0, got -1"):
            call(ACTS, LABELS - 1)
        with raises(ValueError, "alpha must be > 0 and finite, got 0"):
            call(ACTS, LABELS, alpha=0)
        with raises(ValueError, "sigma must be > 0 and finite for every filter, got 0.0 for filter 1"):
            call(ACTS, LABELS, sigma=torch.tensor([1.0, 0.0, 1.0]))
        with raises(TypeError, "acts must be a torch.Tensor, got list"):
            call([[1.0]], LABELS)
    assert hrel_ext.joint_relevance(bad, LABELS, [0, 2], sigma=1.0).isfinite()  # filter 1 is not of the set


@pytest.mark.cuda
@pytest.mark.parametrize("method", selection.METHODS)
def test_cuda_selects_what_the_cpu_selects(rng, method):
    batches, sigma = problem(rng), torch.linspace(4, 5, 6)
    on_gpu = [(acts.cuda(), labels.cuda()) for acts, labels in batches]
    expected = hrel_ext.select_filters(batches, keep=3, method=method, sigma=sigma)
    result = hrel_ext.select_filters(on_gpu, keep=3, method=method, sigma=sigma.cuda())
    assert torch.equal(result.order, expected.order) and result.kept.device.type == "cpu"
    torch.testing.assert_close(result.objective, expected.objective, rtol=0, atol=8e-5)


@pytest.mark.parametrize("method", ("forward", "backward"))
@pytest.mark.parametrize("n", range(3, 10))
def test_filters_that_rounding_alone_tells_apart_are_taken_in_order(n, method):
    batch = (torch.eye(n), torch.arange(n))  # each tells one sample from the rest, as well as any other
    assert hrel_ext.select_filters(batch, keep=2, sigma=1.0, method=method).kept.tolist() == [0, 1]
