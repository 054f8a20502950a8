"""Which channels go together, on networks small enough to say so by hand; and what cutting them leaves."""
# SPDX-License-Identifier: MIT

import copy
import re

import pytest
import torch
from torch import nn

from hrel_ext.pruning import count, plan, prune, remove_filters
from hrel_ext.pruning.groups import Side, check_removal, find_groups
from hrel_ext.zoo.models import MODELS, Shortcut

IMAGE = torch.zeros(1, 3, 32, 32)


class Mixed(nn.Module):
    """A grouped convolution, a concatenation, a depthwise convolution, and a sum of one branch with two."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.right = nn.Conv2d(8, 6, 1)
        self.depthwise = nn.Conv2d(18, 18, 3, padding=1, groups=18)
        self.whole = nn.Conv2d(18, 10, 1)
        self.upper, self.lower = nn.Conv2d(18, 4, 1), nn.Conv2d(18, 6, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.depthwise(torch.cat([self.grouped(x), self.right(x)], 1)).relu()
        x = self.whole(x) + torch.cat([self.upper(x), self.lower(x)], 1)
        return self.head(nn.functional.adaptive_avg_pool2d(x.relu(), 1).flatten(1))


class Flipped(nn.Module):
    """Channels change places in a way that Torch-Pruning does not see."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.third, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6, 2)

    def forward(self, x):
        x = self.first(x).relu()
        x = self.second(x.flip(1)).relu()
        return self.head(self.third(x).mean((2, 3)))


def test_the_groups_of_a_mixed_network_are_those_found_by_hand():
    groups, sizes = find_groups(Mixed(), IMAGE)
    assert {g.convolutions: (len(g.units), g.residual, g.problem) for g in groups} == {
        ("stem",): (4, False, None),  # the same channel of both inputs of the grouped convolution
        ("grouped", "depthwise"): (6, False, None),
        ("right", "depthwise"): (6, False, None),
        ("whole", "upper"): (4, True, None),
        ("whole", "lower"): (6, True, None),
    }
    units = {g.convolutions: g.units for g in groups}
    assert units["stem",][1] == {"stem": (1, 5)}
    assert units["grouped", "depthwise"][2] == {"grouped": (2, 8), "depthwise": (2, 8)}
    assert units["right", "depthwise"][0] == {"right": (0,), "depthwise": (12,)}
    assert units["whole", "lower"][5] == {"whole": (9,), "lower": (5,)}
    channels = {g.convolutions: g.channels for g in groups}
    assert channels["whole", "lower"][Side("head", "in")] == 1
    assert channels["stem",][Side("norm", "out")] == channels["stem",][Side("grouped", "in")] == 2
    assert sizes[Side("head", "in")] == 10 and sizes[Side("depthwise", "out")] == 18


def test_limits_cannot_name_a_layer_whose_filters_go_different_ways():
    with pytest.raises(ValueError, match="coupled in the same way, got 'whole': they go different ways"):
        plan(Mixed(), IMAGE, limits={"whole": 5}, residual="stream")


def test_every_stage_of_a_cifar_resnet_has_its_own_index_set():
    groups, _ = find_groups(MODELS["resnet20"](), IMAGE)
    streams = [g for g in groups if g.residual]
    assert [(g.convolutions[0], len(g.convolutions), len(g.units)) for g in streams] == [
        ("conv1", 4, 16),
        ("stage2.0.conv2", 3, 32),
        ("stage3.0.conv2", 3, 64),
    ]
    assert len(groups) == 3 + 9


def test_a_shortcut_keeps_the_connections_of_the_channels_that_are_left():
    shortcut = Shortcut(4)
    x = torch.randn(2, 4, 6, 6)
    out = shortcut(x)  # channels: 0 0 x0 x1 x2 x3 0 0
    shortcut.remove(inputs=[1], outputs=[0, 4])
    left = shortcut(x[:, [0, 2, 3]])
    expected = out[:, [1, 2, 3, 5, 6, 7]]
    expected[:, 2] = 0  # read x1
    assert torch.equal(left, expected) and shortcut.in_channels == 3
    shortcut.remove(inputs=[0], outputs=[1])
    assert torch.equal(shortcut(x[:, [2, 3]]), expected[:, [0, 2, 3, 4, 5]])


@pytest.mark.parametrize(
    ("residual", "macs", "conv_share", "parameters"),
    (("stream", 28_999_596, -0.76890, 190_073), ("inner", 60_383_872, -0.51880, 402_820)),
)
def test_resnet56_at_the_widths_of_the_paper_costs_what_was_computed(residual, macs, conv_share, parameters):
    network = MODELS["resnet56"]()
    before = count(network, IMAGE)
    width = {16: 8, 32: 15, 64: 30}
    limits = {
        name: width[module.out_channels]
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and (residual == "stream" or name.endswith(".conv1"))
    }
    batches = [(torch.randn(10, 3, 32, 32), torch.arange(10) % 5)]
    result = prune(
        network, batches, IMAGE, limits=limits, shares=dict.fromkeys(limits, 0.6), residual=residual, alpha=2.0
    )
    after = count(network, IMAGE)
    assert (
        (after.macs, after.parameters) == (macs, parameters) == (result.plan.after.macs, result.plan.after.parameters)
    )
    assert after.conv_macs / before.conv_macs - 1 == pytest.approx(conv_share, abs=5e-6)
    assert {name: len(kept) for name, kept in result.kept.items()} == limits


@pytest.mark.parametrize(
    ("removed", "message"),
    (
        ({"stem": [1]}, "removed must take the same positions from each of the 2 groups of 'grouped', got [1] (in"),
        (
            {"grouped": [0, 1]},
            "removed must take the same positions from each of the 2 groups of 'grouped', got [0, 1]",
        ),
        ({"right": range(6)}, "removed must leave at least one channel in every layer, got all 6 of 'right'"),
        ({"whole": [1], "upper": [2]}, "removed must name the filters of 'whole' that go with the others, [2] are"),
        ({"right": [6]}, "removed must name channels of 'right' below 6, got 6"),
    ),
)
def test_a_removal_that_does_not_fit_is_refused_and_changes_nothing(removed, message):
    network = Mixed()
    state = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        remove_filters(network, IMAGE, removed)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())


def test_what_torch_pruning_misreads_is_found_by_trying():
    with pytest.raises(ValueError, match="Torch-Pruning does not find what reads its channels"):
        check_removal(Flipped(), IMAGE, {"first": [0]})
    check_removal(Flipped(), IMAGE, {"second": [0], "third": [5, 1]})


@pytest.mark.parametrize("kind", ("sgd", "adam"))
def test_the_state_of_an_optimizer_is_cut_like_the_weights(kind):
    torch.manual_seed(0)
    network = Mixed()
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9) if kind == "sgd" else torch.optim.Adam(parameters)
    images = torch.randn(4, 3, 32, 32)
    for _ in range(2):
        optimizer.zero_grad()
        network(images).square().sum().backward()
        optimizer.step()
    keys = ("momentum_buffer",) if kind == "sgd" else ("exp_avg", "exp_avg_sq")
    for key in keys:  # a shadow network whose weights are the state; cutting it is the definition of what is right
        shadow = copy.deepcopy(network)
        with torch.no_grad():
            for (_, parameter), (_, own) in zip(shadow.named_parameters(), network.named_parameters(), strict=True):
                parameter.copy_(optimizer.state[own][key])
        carried = copy.deepcopy((network, optimizer))
        remove_filters(carried[0], IMAGE, {"stem": [0, 4], "right": [2], "whole": [3, 9]}, optimizer=carried[1])
        remove_filters(shadow, IMAGE, {"stem": [0, 4], "right": [2], "whole": [3, 9]})
        assert {id(p) for p in carried[0].parameters()} == {id(p) for p in carried[1].param_groups[0]["params"]}
        for (_, parameter), (_, expected) in zip(carried[0].named_parameters(), shadow.named_parameters(), strict=True):
            assert torch.equal(carried[1].state[parameter][key], expected)
        carried[0](images).sum().backward()
        carried[1].step()
