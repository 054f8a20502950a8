"""Balanced mini-batches: what each holds, in which order, and what they change for data with many classes."""
# SPDX-License-Identifier: MIT

import re
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hrel_ext import BalancedBatchSampler, relevance_terms

LABELS = torch.arange(7).repeat_interleave(torch.tensor([5, 9, 6, 5, 12, 7, 8]))[torch.arange(0, 52 * 5, 5) % 52]


def test_every_batch_holds_the_same_number_of_each_of_its_classes_and_no_sample_twice():
    sampler = BalancedBatchSampler(LABELS, classes_per_batch=3, samples_per_class=4, num_batches=40)
    assert len(sampler) == len(list(sampler)) == 40
    for batch in sampler:
        assert len(set(batch)) == 12
        assert list(Counter(LABELS[batch].tolist()).values()) == [4, 4, 4]


def test_nothing_is_drawn_again_before_all_of_it_was_drawn():
    sampler = BalancedBatchSampler(LABELS, classes_per_batch=3, samples_per_class=4, num_batches=70)
    drawn_classes, drawn_samples = [], {c: [] for c in range(7)}
    for batch in sampler:
        drawn_classes += LABELS[batch][::4].tolist()
        for index in batch:
            drawn_samples[LABELS[index].item()].append(index)
    assert set(Counter(drawn_classes).values()) == {30}  # 70 x 3 draws from 7 classes
    for c, drawn in drawn_samples.items():
        counts = Counter(drawn).values()
        assert len(counts) == (LABELS == c).sum() and max(counts) - min(counts) <= 1


def test_the_order_is_that_of_the_seed_and_the_epoch():
    def batches(seed, epoch):
        sampler = BalancedBatchSampler(LABELS.tolist(), classes_per_batch=3, samples_per_class=2, seed=seed)
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler)  # a second pass is the first
        return list(sampler)

    assert batches(3, 1) == batches(3, 1)
    assert batches(3, 1) != batches(3, 2) and batches(3, 1) != batches(4, 1)
    assert len(batches(0, 0)) == 52 // 6


def test_a_loader_takes_it():
    data = TensorDataset(torch.arange(52), LABELS)
    loader = DataLoader(data, batch_sampler=BalancedBatchSampler(LABELS, classes_per_batch=7, samples_per_class=5))
    assert [labels.bincount().tolist() for _, labels in loader] == [[5] * 7]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    (
        ({"classes_per_batch": 8}, ValueError, "classes_per_batch must be at most the 7 classes of labels, got 8"),
        (
            {"samples_per_class": 6},
            ValueError,
            "samples_per_class must be at most 5, the samples of class 0, got 6",
        ),
        ({"classes_per_batch": 0}, ValueError, "classes_per_batch must be >= 1, got 0"),
        ({"samples_per_class": 2.0}, TypeError, "samples_per_class must be an int, got float"),
        ({"num_batches": -1}, ValueError, "num_batches must be >= 1, got -1"),
        (
            {"labels": LABELS.float()},
            ValueError,
            "labels must be integers of shape (K,), got torch.float32 of shape (52,)",
        ),
        ({"labels": []}, ValueError, "labels must be integers of shape (K,), got torch.float32 of shape (0,)"),
    ),
)
def test_wrong_arguments_are_named(changed, error, message):
    arguments = {"labels": LABELS, "classes_per_batch": 3, "samples_per_class": 4, **changed}
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        BalancedBatchSampler(arguments.pop("labels"), **arguments)


def test_many_classes_make_the_relevance_label_free_in_plain_batches_and_not_in_balanced_ones(rng):
    # N = 128 of 1000 classes. Filter f knows the class by a share of its variance that rises with f; its scale, which
    # the label-free entropy follows, has nothing to do with that.
    num_classes, num_filters, num_features = 1000, 16, 6
    labels = torch.arange(8 * num_classes) % num_classes  # (K,)
    share = torch.linspace(0, 1, num_filters)[:, None]  # (F, 1)
    scale = torch.tensor([0.9, 1.1, 1.1, 0.9]).repeat(num_filters // 4)[:, None]  # (F, 1)
    means = torch.randn(num_classes, num_filters, num_features, generator=rng)  # (C, F, D)
    noise = torch.randn(len(labels), num_filters, num_features, generator=rng)  # (K, F, D)
    maps = scale * (share.sqrt() * means[labels] + (1 - share).sqrt() * noise)

    def means_over(batches):
        terms = [relevance_terms(maps[b], labels[b], sigma=(2 * num_features) ** 0.5) for b in batches]
        return (
            torch.stack([getattr(t, name) for t in terms]).mean(0) for name in ("relevance", "entropy")
        )  # (F,) each

    def correlation(first, second):
        return torch.corrcoef(torch.stack([first, second]))[0, 1]

    plain, entropy = means_over(torch.randperm(len(labels), generator=rng).split(128)[:8])
    assert (plain - entropy).abs().max() < 0.15 and correlation(plain, entropy) > 0.99
    assert abs(correlation(plain, share[:, 0])) < 0.2

    sampler = BalancedBatchSampler(labels, classes_per_batch=16, samples_per_class=8, num_batches=8)
    balanced, entropy = means_over(sampler)
    assert (balanced - entropy).abs().max() > 2 and correlation(balanced, entropy) < 0.4
    assert correlation(balanced, share[:, 0]) > 0.8
