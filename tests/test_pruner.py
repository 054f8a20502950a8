"""Pruning on small networks: what goes, what stays, what is refused; what costs and files say afterwards."""
# SPDX-License-Identifier: MIT

import copy
import re

import pytest
import torch
from torch import nn

from hrel_ext.collect import collect
from hrel_ext.pruning import count, load_pruned, measure_latency, prune, remove_filters, save_pruned, schedule, train
from hrel_ext.zoo.data import Batches, Split, digits
from hrel_ext.zoo.models import lenet5

LIMITS, SHARES = {"conv1": 4, "conv2": 5}, {"conv1": 0.04, "conv2": 0.12}


@pytest.fixture
def network():
    torch.manual_seed(5)
    return lenet5()


@pytest.fixture
def batches(rng):
    labels = torch.arange(90) % 10
    images = torch.rand(90, 1, 28, 28, generator=rng) + labels[:, None, None, None] / 10
    return Batches(Split(images, labels), 30)


def test_schedule_of_lenet5_is_the_one_of_the_paper():
    counts = schedule({"conv1": 20, "conv2": 50}, LIMITS, SHARES)
    second = [50, 43, 37, 32, 28, 24, 21, 18, 15, 13, 11, 9, 7, 6, 5, 5, 5]
    assert [(c["conv1"], c["conv2"]) for c in counts] == list(zip(range(20, 3, -1), second, strict=True))


def test_the_lowest_filters_go_and_the_others_keep_every_bit(network, batches):
    original = copy.deepcopy(network)
    result = prune(network, batches, torch.zeros(1, 1, 28, 28), limits={"conv1": 15, "conv2": 40}, shares=SHARES)
    first = result.cycles[0]
    scores = collect(original, batches)
    for name in ("conv1", "conv2"):
        assert torch.equal(first.scores[name].per_batch, scores[name].per_batch)
        gone, left = list(first.removed[name]), list(first.kept[name])
        assert scores[name].mean[gone].max() <= scores[name].mean[left].min()
        assert sorted(gone + left) == list(range(result.original[name]))
    kept = {name: list(indices) for name, indices in result.kept.items()}
    assert [len(kept["conv1"]), len(kept["conv2"])] == [15, 40]
    assert torch.equal(network.conv1.weight, original.conv1.weight[kept["conv1"]])
    assert torch.equal(network.conv2.weight, original.conv2.weight[kept["conv2"]][:, kept["conv1"]])
    assert torch.equal(network.conv2.bias, original.conv2.bias[kept["conv2"]])
    columns = (torch.tensor(kept["conv2"])[:, None] * 16 + torch.arange(16)).flatten()  # 4 x 4 values per filter
    assert torch.equal(network.fc1.weight, original.fc1.weight[:, columns])


def test_removal_equals_masking(network, batches, rng):
    masked = copy.deepcopy(network)
    removed = {"conv1": [0, 7, 19], "conv2": [1, 2, 30, 49]}
    remove_filters(network, torch.zeros(1, 1, 28, 28), removed)
    with torch.no_grad():
        for name, indices in removed.items():
            layer = masked.get_submodule(name)
            layer.weight[indices] = 0
            layer.bias[indices] = 0
    images = torch.rand(6, 1, 28, 28, generator=rng)
    assert torch.allclose(network(images), masked(images), rtol=0, atol=1e-5)
    network(images).sum().backward()  # the smaller network trains
    assert network.conv2.weight.grad.shape == (46, 17, 5, 5)


def test_frozen_layers_and_modes_stay_as_they_were(network):
    network.train()
    network.relu1.eval()
    network.conv1.requires_grad_(False)
    remove_filters(network, torch.zeros(1, 1, 28, 28), {"conv1": [3]})
    assert network.conv1.out_channels == 19  # the tracer of Torch-Pruning alone does not see a frozen layer
    assert not network.conv1.weight.requires_grad and network.conv2.weight.requires_grad
    assert network.training and network.conv1.training and not network.relu1.training


def test_of_equal_scores_the_lower_index_goes_first(network, batches):
    with torch.no_grad():
        network.conv1.weight.zero_()
        network.conv1.bias.zero_()
    result = prune(network, batches, torch.zeros(1, 1, 28, 28), limits={"conv1": 17}, shares={"conv1": 0.1})
    assert result.kept["conv1"] == tuple(range(3, 20))


def test_a_pruned_network_retrains_and_the_validation_split_chooses_the_epoch():
    splits = digits(seed=1)
    torch.manual_seed(1)
    model = lenet5()
    batches, validation = Batches(splits.train, 100, seed=1, drop_last=True), Batches(splits.validation, 300)
    training = train(model, batches, validation, epochs=3, learning_rate=0.02, seed=1)
    accuracies = [epoch.validation.accuracy for epoch in training.epochs]
    assert training.best.validation.accuracy == max(accuracies) > 0.5
    retrained = []
    result = prune(
        model,
        batches,
        splits.train.images[:1],
        limits={"conv1": 18, "conv2": 40},
        shares={"conv1": 0.04, "conv2": 0.12},
        retrain=lambda m, number: retrained.append(
            (number, train(m, batches, validation, epochs=1, learning_rate=0.01))
        ),
        evaluate=lambda m: 0.25,
    )
    assert [number for number, _ in retrained] == [1, 2] and len(result.cycles) == 2
    assert result.cycles[0].accuracy == 0.25
    assert model.conv2.weight.shape == (40, 18, 5, 5)


@pytest.mark.parametrize(
    ("limits", "shares", "message"),
    (
        ({}, {}, "limits must name at least one convolution, got none"),
        ({"conv9": 4}, {"conv9": 0.1}, "limits must name convolutions of the model (conv1, conv2), got 'conv9'"),
        ({"conv1": 0}, {"conv1": 0.1}, "limits['conv1'] must be between 1 and the 20 filters of the layer, got 0"),
        ({"conv1": 21}, {"conv1": 0.1}, "limits['conv1'] must be between 1 and the 20 filters of the layer, got 21"),
        ({"conv1": 4}, {"conv1": 1.0}, "shares['conv1'] must be above 0 and below 1, got 1.0"),
        ({"conv1": 4}, {}, "shares must name the same layers as limits (conv1), got none"),
        ({"conv1": 20}, {"conv1": 0.1}, "limits must be below the width of at least one layer, got the widths"),
    ),
)
def test_a_wrong_schedule_is_refused_before_any_work(network, limits, shares, message):
    def never():
        raise AssertionError("the batches were read")
        yield

    with pytest.raises(ValueError, match=re.escape(message)):
        prune(network, never(), torch.zeros(1, 1, 28, 28), limits=limits, shares=shares)


def test_macs_and_parameters_of_lenet5_are_their_closed_forms(network):
    image = torch.zeros(3, 1, 28, 28)
    cost = count(network, image)
    assert cost.conv_macs == 24 * 24 * 20 * 25 + 8 * 8 * 50 * 20 * 25 == 1_888_000
    assert cost.macs - cost.conv_macs == 800 * 800 + 800 * 500 + 500 * 10
    assert cost.parameters == 20 * 26 + 50 * 501 + 800 * 801 + 500 * 801 + 10 * 501
    remove_filters(network, image, {"conv1": list(range(2, 20)), "conv2": list(range(3, 50))})
    assert count(network, image).conv_macs == 38_400
    latency = measure_latency(network, image, runs=3, warmup=1)
    assert latency.median_ms > 0 and latency.batch_size == 3 and latency.device == "cpu"


def test_grouped_and_repeated_layers_count_what_they_multiply():
    shared = nn.Conv2d(6, 6, 3, padding=1, groups=3)  # each output value reads 2 channels
    assert count(nn.Sequential(shared, shared), torch.zeros(2, 6, 5, 7)).macs == 2 * (6 * 5 * 7) * (2 * 9)


def test_a_damaged_folder_is_refused(network, batches, tmp_path):
    result = prune(network, batches, torch.zeros(1, 1, 28, 28), limits={"conv1": 19}, shares={"conv1": 0.04})
    save_pruned(tmp_path, network, result, input_shape=(1, 28, 28), model_name="mine")
    with pytest.raises(ValueError, match=r"model_fn must be given unless the model is one of lenet5, .*, got 'mine'"):
        load_pruned(tmp_path)
    assert torch.equal(load_pruned(tmp_path, lenet5).conv1.weight, network.conv1.weight)
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"sha256 of .*model\.safetensors must be"):
        load_pruned(tmp_path, lenet5)


def test_a_network_with_a_branch_is_pruned_through_its_dependencies(rng):
    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.left, self.right = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(6, 4, 1)
            self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(12, 3)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.head(torch.cat([self.norm(self.left(x)), self.right(x)], 1).mean((2, 3)))

    torch.manual_seed(2)
    model = Branched()
    before = model.head.weight.detach().clone()
    remove_filters(model, torch.zeros(1, 1, 9, 9), {"stem": [1], "left": [0, 5]})
    assert model.left.weight.shape == (6, 5, 3, 3) and model.norm.num_features == 6
    assert torch.equal(model.head.weight, before[:, [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]])
    assert model(torch.rand(2, 1, 9, 9, generator=rng)).shape == (2, 3)
