"""Sets of filters: their relevance, what a filter adds, and greedy selection, against a search written out."""
# SPDX-License-Identifier: MIT

import pytest
import torch

import hrel_ext
from hrel_ext import reference
from hrel_ext.testing import tolerance_bits


def layer(rng, num_samples=37, num_filters=7, num_classes=4, dtype=torch.float32):
    labels = torch.arange(num_samples) % num_classes
    signal = torch.rand(num_filters, generator=rng)[:, None] * labels[:, None, None]  # (N, F, 1)
    acts = signal + torch.randn(num_samples, num_filters, 5, generator=rng)
    return acts.to(dtype), labels


def by_definition(acts, labels, subset, sigma, alpha):
    """I(T_S; B) in float64: the maps of the set side by side, each in units of its width."""
    if not subset:
        return 0.0
    widths = torch.as_tensor(sigma, dtype=torch.float64).expand(acts.shape[1])
    together = torch.cat([acts[:, f].double() / widths[f] for f in subset], 1)[:, None]  # (N, 1, |S| D)
    return reference.relevance(together, labels, sigma=1.0, alpha=alpha).item()


def greedy(batches, keep, sigma, alpha, forward):
    """The search written out, in float64; returns the order of the steps."""
    num_filters = batches[0][0].shape[1]
    chosen, order = [] if forward else list(range(num_filters)), []
    for _ in range(keep if forward else num_filters - keep):
        rest = [f for f in range(num_filters) if f not in chosen] if forward else list(chosen)
        sets = [[*chosen, f] if forward else [g for g in chosen if g != f] for f in rest]
        values = [sum(by_definition(*batch, s, sigma, alpha) for batch in batches) for s in sets]
        best = next(i for i, value in enumerate(values) if value >= max(values) - 1e-10 * len(batches))
        order.append(rest[best])
        chosen = sets[best]
    return tuple(sorted(chosen)), tuple(order)


@pytest.mark.parametrize("alpha", (1, 1.01, 2))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_relevance_of_a_set_is_that_of_its_maps_side_by_side(rng, dtype, alpha):
    acts, labels = layer(rng, dtype=dtype)
    sigma = 1 + torch.rand(7, generator=rng, dtype=dtype)
    for subset in ([], [3], [0, 5], list(range(7))):
        bits = hrel_ext.joint_relevance(acts, labels, subset, sigma=sigma, alpha=alpha)
        assert bits.dtype == dtype and bits.shape == ()
        expected = by_definition(acts, labels, subset, sigma, alpha)
        assert bits.item() == pytest.approx(expected, abs=3 * tolerance_bits(dtype, 37, alpha))


def test_one_filter_has_its_own_relevance_and_all_of_them_the_width_of_the_layer(rng):
    acts, labels = layer(rng)
    alone = torch.stack([hrel_ext.joint_relevance(acts, labels, [f], sigma=2.0) for f in range(7)])
    torch.testing.assert_close(alone, hrel_ext.relevance(acts, labels, sigma=2.0), rtol=0, atol=5e-5)
    together = hrel_ext.relevance(acts.flatten(1)[:, None], labels)[0]
    torch.testing.assert_close(hrel_ext.joint_relevance(acts, labels, range(7)), together, rtol=0, atol=5e-5)


@pytest.mark.parametrize("label_sigma", (0.1, 0.8))
def test_what_a_filter_adds_follows_the_chain_rule(rng, label_sigma):
    acts, labels = layer(rng)
    options = {"sigma": 3.0, "label_sigma": label_sigma}
    added = hrel_ext.conditional_relevance(acts, labels, [1, 4], **options)
    base = hrel_ext.joint_relevance(acts, labels, [1, 4], **options)
    for f in range(7):
        whole = hrel_ext.joint_relevance(acts, labels, {1, 4, f}, **options)
        assert (base + added[f]).item() == pytest.approx(whole.item(), abs=5e-5)
    assert added[1] == added[4] == 0
    torch.testing.assert_close(
        hrel_ext.conditional_relevance(acts, labels, [], **options),
        hrel_ext.relevance(acts, labels, **options),
        rtol=0,
        atol=5e-5,
    )


def test_a_copy_adds_far_less_than_it_says_alone(rng):
    acts, labels = layer(rng, num_filters=3)
    acts[:, 0] = 3.0 * labels[:, None]
    acts[:, 1] = acts[:, 0]
    alone = hrel_ext.relevance(acts, labels, sigma=5.0)
    assert hrel_ext.conditional_relevance(acts, labels, [0], sigma=5.0)[1] < 0.2 * alone[1]


@pytest.mark.parametrize("method", ("forward", "backward"))
@pytest.mark.parametrize("alpha", (1, 1.01))
@pytest.mark.parametrize("sigma", (2.0, 6.0))
def test_selection_takes_the_steps_of_a_search_written_out(rng, method, alpha, sigma):
    batches = [layer(rng, dtype=torch.float64), layer(rng, dtype=torch.float64)]
    for keep in (1, 3, 7):
        found = hrel_ext.select_filters(iter(batches), keep=keep, method=method, sigma=sigma, alpha=alpha)
        assert (found.kept, found.order) == greedy(batches, keep, sigma, alpha, method == "forward")
        for step, bits in enumerate(found.relevance_bits, start=1):
            taken = found.order[:step]
            subset = list(taken) if method == "forward" else [f for f in range(7) if f not in taken]
            values = [by_definition(*batch, subset, sigma, alpha) for batch in batches]
            assert bits == pytest.approx(sum(values) / 2, abs=1e-9)


@pytest.mark.parametrize("method", ("forward", "backward"))
def test_float32_takes_the_same_steps(rng, method):
    batches = [layer(rng), layer(rng)]
    found = hrel_ext.select_filters(batches, keep=3, method=method, sigma=6.0)
    exact = hrel_ext.select_filters([(a.double(), b) for a, b in batches], keep=3, method=method, sigma=6.0)
    assert found.order == exact.order
    assert found.relevance_bits == pytest.approx(exact.relevance_bits, abs=5e-5)


@pytest.mark.parametrize("method", ("forward", "backward"))
def test_of_two_copies_of_a_good_filter_only_one_is_kept(rng, method):
    labels = torch.arange(48) % 4
    noise = 0.1 * torch.randn(48, 5, 3, generator=rng)
    halves = torch.stack((labels % 2, labels % 2, labels // 2, 0 * labels, 0 * labels), 1)  # 0 and 1 are copies
    acts = 5.0 * halves[:, :, None] + noise
    acts[:, 1] = acts[:, 0]
    kept = hrel_ext.select_filters([(acts, labels)], keep=2, method=method, sigma=3.0).kept
    assert kept in ((0, 2), (1, 2))
    one_by_one = hrel_ext.relevance(acts, labels, sigma=3.0).topk(2).indices.tolist()
    assert len({0, 1, 2} & set(one_by_one)) == 2


def test_result_follows_the_filters_and_not_the_threads(rng):
    acts, labels = layer(rng)
    order = torch.randperm(7, generator=rng)
    found = hrel_ext.select_filters([(acts, labels)], keep=3, sigma=3.0)
    permuted = hrel_ext.select_filters([(acts[:, order], labels)], keep=3, sigma=3.0)
    assert tuple(order[list(permuted.order)].tolist()) == found.order
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert hrel_ext.select_filters([(acts, labels)], keep=3, sigma=3.0) == found
    finally:
        torch.set_num_threads(threads)


def test_edges():
    labels = torch.tensor([0, 0, 0])
    acts = torch.tensor([[1.0], [2.0], [5.0]])
    assert hrel_ext.joint_relevance(acts, labels, [0], sigma=1.0).item() == pytest.approx(0, abs=1e-6)  # one class
    assert hrel_ext.select_filters([(acts, labels)], keep=1, sigma=1.0).kept == (0,)
    assert hrel_ext.select_filters([(acts, labels)], keep=1, method="backward").order == ()
    one = torch.ones(1, 2), torch.tensor([3])
    assert hrel_ext.conditional_relevance(*one, [0]).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"keep": 0}, "keep must be between 1 and the 2 filters, got 0"),
        ({"keep": 3}, "keep must be between 1 and the 2 filters, got 3"),
        ({"method": "sideways"}, 'method must be "forward" or "backward", got \'sideways\''),
        (
            {"batches": []},
            "batches must hold at least one mini-batch, all with the same number of filters, got no mini",
        ),
        ({"sigma": 0.0}, "sigma must be > 0 and finite, got 0.0"),
    ),
)
def test_a_wrong_argument_is_named(change, message):
    acts, labels = torch.ones(3, 2), torch.arange(3)
    arguments = {"batches": [(acts, labels)], "keep": 1, **change}
    with pytest.raises(ValueError, match=message):
        hrel_ext.select_filters(arguments.pop("batches"), **arguments)


def test_a_wrong_subset_and_a_value_not_finite_are_named():
    acts, labels = torch.ones(3, 2), torch.arange(3)
    with pytest.raises(ValueError, match="subset must hold indices of the 2 filters, 0 to 1, got 2"):
        hrel_ext.joint_relevance(acts, labels, [0, 2])
    with pytest.raises(ValueError, match="subset must hold each filter once, got 1 2 times"):
        hrel_ext.joint_relevance(acts, labels, [1, 0, 1])
    with pytest.raises(TypeError, match="given must hold integers, got float"):
        hrel_ext.conditional_relevance(acts, labels, [0.5])
    acts[1, 1] = torch.nan
    with pytest.raises(ValueError, match="acts must be finite, filter 1 holds NaN or Inf"):
        hrel_ext.joint_relevance(acts, labels, [0], sigma=1.0)
