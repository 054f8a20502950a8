"""The compiled width search against the float64 oracle."""
# SPDX-License-Identifier: MIT

import pytest
import torch

import hrel_ext
from hrel_ext import reference, testing
from hrel_ext._batch import widths
from hrel_ext.width import _underflow_scale

GRID = {"low": 0.2, "high": 4.0, "num_widths": 39}


def select(*names):
    return [case for case in testing.CASES if case.name in names]


def alignment(acts, labels, width, label_sigma=0.1):
    """2 log2 of the alignment of one matrix of samples (N, D) with the labels, written with differences."""
    label_distances = 2.0 * (labels[:, None] != labels)  # (N, N), squared, of the one-hot rows
    label_gram = torch.exp(-label_distances.double() / label_sigma**2)  # (N, N)
    k = torch.exp(-(acts[:, None] - acts[None]).pow(2).sum(-1) / width**2)  # (N, N)
    return (2 * torch.log2((k * label_gram).sum() / (k.norm() * label_gram.norm()))).item()


def assert_width_is_best(acts, labels, width, label_sigma=0.1):
    """Check that a width for one matrix of samples (N, D) is in the grid and that no other one aligns better."""
    acts = acts.double()
    mean = torch.cdist(acts, acts, compute_mode="donot_use_mm_for_euclid_dist").mean()
    grid = torch.linspace(*GRID.values(), dtype=torch.float64) * mean  # (M,)
    assert ((grid - width).abs() <= 1e-5 * width).any(), f"{width} is not in the grid"
    best = max(alignment(acts, labels, candidate, label_sigma) for candidate in grid)
    assert alignment(acts, labels, width, label_sigma) >= best - 1e-5


@pytest.mark.parametrize("label_sigma", (0.1, 0.5, 1.0))
@pytest.mark.parametrize("case", select("n2", "n33", "d1", "c1", "c37", "c100", "rectified", "offset", "line"), ids=str)
def test_no_width_of_the_grid_aligns_better(case, label_sigma):
    acts, labels = case.make()
    acts = acts[:, :3]
    layer = hrel_ext.kernel_width(acts, labels, label_sigma=label_sigma, **GRID)
    assert layer.shape == () and layer.dtype == case.dtype
    assert_width_is_best(acts.flatten(1), labels, layer.item(), label_sigma)
    filters = hrel_ext.kernel_width(acts, labels, per_filter=True, label_sigma=label_sigma, **GRID)
    assert filters.shape == (3,) and filters.dtype == case.dtype
    for f in range(3):
        assert_width_is_best(acts[:, f].flatten(1), labels, filters[f].item(), label_sigma)


@pytest.mark.parametrize("per_filter", (False, True))
@pytest.mark.parametrize("name", ("n1", "n2", "n33", "n97", "f1", "d65", "sliced2d", "c2", "some_dead", "outlier"))
def test_default_search_agrees_with_the_oracle_in_float64(name, per_filter):
    (case,) = (case for case in select(name) if case.dtype == torch.float64)
    acts, labels = case.make()
    width = hrel_ext.kernel_width(acts, labels, per_filter=per_filter)
    expected = reference.kernel_width(acts, labels, per_filter=per_filter)
    torch.testing.assert_close(width, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("per_filter", (False, True))
@pytest.mark.parametrize("name", ("dead", "constant", "n1"))
def test_equal_maps_have_the_width_one(name, per_filter):
    for case in select(name):
        acts, labels = case.make()
        width = hrel_ext.kernel_width(acts, labels, per_filter=per_filter)
        assert torch.equal(width, torch.ones_like(width))


def test_first_of_equal_maxima_wins():
    # Two samples of different classes: <K, L> is constant, |K| falls with the width until exp underflows.
    acts, labels = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
    width = hrel_ext.kernel_width(acts, labels, low=1e-3, high=2e-3, num_widths=11)
    assert width.item() == pytest.approx(0.5e-3)


def test_three_points_by_hand():
    # The distances 1, 2, 3 have the mean 12 / 9 over nine pairs; the grid is 1, 2, 3 and 2 aligns best.
    acts, labels = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])
    assert hrel_ext.kernel_width(acts, labels, low=0.75, high=2.25, num_widths=3).item() == pytest.approx(2)


def test_width_of_the_layer_is_found_on_its_whole_output(rng):
    acts, labels = torch.randn(33, 4, 3, 2, generator=rng), torch.arange(33) % 5
    expected = hrel_ext.kernel_width(acts.flatten(1)[:, None], labels, per_filter=True)
    torch.testing.assert_close(hrel_ext.kernel_width(acts, labels), expected[0], rtol=1e-5, atol=0)


def test_width_of_the_batch_equals_the_width_of_each_filter_bit_for_bit(rng):
    acts, labels = torch.randn(64, 11, 6, generator=rng), torch.arange(64) % 5
    together = hrel_ext.kernel_width(acts, labels, per_filter=True)
    alone = [hrel_ext.kernel_width(acts[:, f : f + 1], labels, per_filter=True) for f in range(11)]
    assert torch.equal(together, torch.cat(alone))


def test_widths_scale_with_the_activations(rng):
    acts, labels = torch.randn(33, 4, 6, generator=rng), torch.arange(33) % 5
    for per_filter in (False, True):
        width = hrel_ext.kernel_width(acts, labels, per_filter=per_filter)
        scaled = hrel_ext.kernel_width(1024 * acts, labels, per_filter=per_filter)
        torch.testing.assert_close(scaled, 1024 * width, rtol=1e-6, atol=0)


def test_half_precision_is_converted_and_gradients_are_not_followed(rng):
    acts, labels = torch.randn(33, 4, 6, generator=rng).half(), torch.arange(33) % 5
    width = hrel_ext.kernel_width(acts.requires_grad_(), labels)
    assert width.dtype == torch.float32 and not width.requires_grad
    assert torch.equal(width, hrel_ext.kernel_width(acts.detach().float(), labels))


@pytest.mark.parametrize("per_filter", (False, True))
def test_scale_of_tiny_half_precision_is_float32(per_filter):
    # Of bfloat16 on CUDA, which is not converted: the scale must not be rounded to it, nor the scaled maps.
    acts = torch.full((4, 2, 3), 2.0**-120, dtype=torch.bfloat16)
    scale = _underflow_scale(acts, torch.zeros(2 if per_filter else 1), per_filter)
    assert torch.equal(scale, torch.full_like(scale, 2.0**119)) and scale.dtype == torch.float32
    scaled = acts * (scale[None, :, None] if per_filter else scale)
    assert torch.equal(scaled, torch.full((4, 2, 3), 0.5))
    assert widths(2, acts).dtype == widths(torch.ones(2).half(), acts).dtype == torch.float32


def test_no_filters_have_no_widths():
    acts, labels = torch.empty(6, 0, 4), torch.arange(6)
    assert hrel_ext.kernel_width(acts, labels, per_filter=True).shape == (0,)
    assert hrel_ext.kernel_width(acts, labels).item() == 1


@pytest.mark.parametrize("per_filter", (False, True))
@pytest.mark.parametrize("exponent", (-40, -60, -80, -110))
def test_widths_of_tiny_activations_scale_with_them(rng, exponent, per_filter):
    acts, labels = torch.rand(33, 5, 7, generator=rng), torch.arange(33) % 4
    acts[:, 1] = 0  # a dead filter between live ones
    expected = hrel_ext.kernel_width(acts, labels, per_filter=per_filter) * 2.0**exponent
    if per_filter:
        expected[1] = 1  # any width
    width = hrel_ext.kernel_width(acts * 2.0**exponent, labels, per_filter=per_filter)
    torch.testing.assert_close(width, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("shape", ((), (7,)), ids=str)
def test_moving_width_is_the_weighted_sum_of_all_widths(rng, shape, dtype):
    widths = torch.rand(6, *shape, generator=rng, dtype=dtype) + 1
    moving = hrel_ext.MovingWidth(decay=0.75)
    averages = [moving.update(width) for width in widths]
    for t, average in enumerate(averages):
        weights = 0.25 * 0.75 ** torch.arange(t, -1, -1, dtype=dtype)  # of widths 0 .. t
        weights[0] *= 4  # the first one stands for all before it
        torch.testing.assert_close(average, torch.tensordot(weights, widths[: t + 1], 1))
        assert average.shape == shape and average.dtype == dtype
    assert torch.equal(moving.value, averages[-1]) and torch.equal(averages[0], widths[0])


def test_moving_width_by_hand_with_the_decay_of_hrel():
    moving = hrel_ext.MovingWidth()
    assert [round(moving.update(torch.tensor(w)).item(), 6) for w in (1.0, 2.0, 4.0)] == [1.0, 1.1, 1.39]
    same = hrel_ext.MovingWidth()
    assert all(same.update(torch.tensor(0.1)).item() == torch.tensor(0.1).item() for _ in range(20))
    last = hrel_ext.MovingWidth(decay=0)
    assert [last.update(torch.tensor(w)).item() for w in (1.0, 2.0)] == [1.0, 2.0]


def test_moving_width_keeps_its_own_copy_and_follows_no_gradient():
    width, moving = torch.ones(3, requires_grad=True), hrel_ext.MovingWidth()
    first = moving.update(width)
    with torch.no_grad():
        width.fill_(5)
    assert torch.equal(moving.value, torch.ones(3)) and not moving.value.requires_grad
    moving.update(width)
    assert torch.equal(first, torch.ones(3))


def test_moving_width_goes_on_from_its_state(tmp_path):
    moving, copy = hrel_ext.MovingWidth(decay=0.5), hrel_ext.MovingWidth()
    copy.load_state_dict(moving.state_dict())
    with pytest.raises(RuntimeError):
        _ = copy.value
    moving.update(torch.tensor([1.0, 2.0]))
    torch.save(moving.state_dict(), tmp_path / "width.pt")
    copy.load_state_dict(torch.load(tmp_path / "width.pt", weights_only=True))
    for width in (torch.tensor([3.0, 3.0]), torch.tensor([5.0, 1.0])):
        assert torch.equal(copy.update(width), moving.update(width))


@pytest.mark.parametrize("per_filter", (False, True))
def test_moving_width_is_a_sigma(rng, per_filter):
    acts, labels = torch.randn(33, 4, 6, generator=rng), torch.arange(33) % 5
    width = hrel_ext.kernel_width(acts, labels, per_filter=per_filter)
    sigma = hrel_ext.MovingWidth().update(width)
    expected = hrel_ext.relevance(acts, labels, sigma="filter" if per_filter else "layer")
    assert torch.equal(hrel_ext.relevance(acts, labels, sigma=sigma), expected)
