"""Scores collected by hooks: equal to scoring by hand, nothing left behind, mistakes named."""
# SPDX-License-Identifier: MIT

import importlib
import re

import pytest
import torch
from torch import nn

import hrel_ext
from hrel_ext import _batch
from hrel_ext.collect import collect

collect_module = importlib.import_module("hrel_ext.collect")  # the package's attribute is the function


@pytest.fixture
def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten())


@pytest.fixture
def batches(rng):
    return [(torch.rand(n, 1, 9, 9, generator=rng), torch.arange(n) % 3) for n in (20, 20, 20, 7)]


def test_scores_are_those_of_each_layer_by_hand_and_the_smaller_last_batch_is_left_out(model, batches):
    scores = collect(model, batches, alpha=1.0)
    assert list(scores) == ["0", "3"]
    model.eval()
    by_hand = torch.stack([hrel_ext.relevance(model[:4](x), y, alpha=1.0) for x, y in batches[:3]])  # (3, F)
    assert torch.equal(scores["3"].per_batch, by_hand)
    assert torch.equal(scores["3"].mean, by_hand.mean(0)) and torch.equal(scores["3"].std, by_hand.std(0))


def test_labels_are_sorted_once_for_all_layers(model, batches, monkeypatch):
    sort, seen = collect_module.sort_by_class, []
    monkeypatch.setattr(collect_module, "sort_by_class", lambda labels: seen.append(labels) or sort(labels))
    monkeypatch.setattr(_batch, "sort_by_class", None)  # so that no layer can sort them again
    collect(model, batches, sigma=2.0)
    assert len(seen) == 3  # mini-batches, of two layers each


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    (
        (torch.arange(20).float(), TypeError, "labels must have an integer dtype, got torch.float32"),
        (torch.zeros(20, 2, dtype=torch.int64), ValueError, "labels must have shape (N,), got (20, 2)"),
        (torch.arange(20) - 7, ValueError, "layer '0': labels must be class ids >= 0, got -7"),
    ),
)
def test_wrong_labels_are_named(model, batches, labels, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        collect(model, [(batches[0][0], labels)])


def test_outputs_of_another_number_of_samples_are_named(batches):
    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            return self.layer(x[::2])

    with pytest.raises(ValueError, match=re.escape("layer 'layer': labels must have shape (N,) = (10,) to match acts")):
        collect(Halved(), batches[:1])


def test_one_batch_has_no_spread_and_any_module_can_be_scored(model, batches):
    scores = collect(model, batches[:1], layers={"first": "2"}, sigma=2.0)
    assert scores["first"].per_batch.shape == (1, 5) and torch.equal(scores["first"].std, torch.zeros(5))


def test_modes_and_hooks_are_restored_also_after_an_error(model, batches):
    model.train()
    model[1].eval()
    statistics = model[1].running_mean.clone()
    collect(model, batches)
    broken = [(torch.full((20, 1, 9, 9), float("nan")), torch.arange(20) % 3)]
    with pytest.raises(ValueError, match=r"layer '0': acts must be finite"):
        collect(model, broken)
    assert model.training and model[0].training and not model[1].training
    assert torch.equal(model[1].running_mean, statistics)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("layers", "message"),
    (
        (["7"], "layers must be among the model's modules (0, 1, 2, 3, 4), got '7'"),
        ([], "layers must name at least one module, got none"),
        ("0", "layers must be a collection of names, got the string '0'"),
    ),
)
def test_wrong_layers_are_named(model, batches, layers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        collect(model, batches, layers=layers)


def test_layers_that_run_twice_or_never_are_named(batches):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.never = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)

        def forward(self, x):
            return self.twice(self.twice(x))

    with pytest.raises(ValueError, match="got 'twice' twice"):
        collect(Odd(), batches)
    with pytest.raises(ValueError, match="got no output from never"):
        collect(Odd(), batches, layers=["never"])


def test_batches_must_exist_and_have_one_size(model, batches):
    with pytest.raises(ValueError, match="batches must hold at least one mini-batch, got none"):
        collect(model, [])
    with pytest.raises(ValueError, match="batches must all have 20 samples"):
        collect(model, [batches[0], batches[3], batches[1]])


def test_progress_sees_every_batch(model, batches):
    seen = []
    collect(model, batches, progress=lambda all_batches: (seen.append(len(b[1])) or b for b in all_batches))
    assert seen == [20, 20, 20, 7]
