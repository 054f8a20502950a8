"""Pruning in cycles on a small residual network: splitting, batch norms, stop rules, the way back, the optimizer."""
# SPDX-License-Identifier: MIT

import copy
import math
import re

import pytest
import torch
from torch import nn

from hrel_ext.collect import collect
from hrel_ext.pruning import L1Norm, count, plan, prune, recalibrate
from hrel_ext.pruning.state import Snapshot

IMAGE = torch.zeros(1, 3, 8, 8)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.inner, self.norm2 = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.outer, self.head = nn.Conv2d(12, 12, 3, padding=1), nn.Linear(12, 4)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.norm2(self.inner(x)).relu())
        return self.head(x.mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(2)
    return Residual()


@pytest.fixture
def batches(rng):
    labels = torch.arange(16) % 4
    return [(torch.rand(16, 3, 8, 8, generator=rng) * 2 + labels[:, None, None, None], labels) for _ in range(3)]


def test_a_stream_loses_the_channels_whose_mean_score_is_lowest(model, batches):
    scores = collect(model, batches, alpha=2.0)
    result = prune(model, batches, IMAGE, target={"macs": 0.5}, residual="stream", alpha=2.0)
    both = (scores["stem"].mean.double() + scores["outer"].mean.double()) / 2
    (cycle,) = result.cycles
    assert list(cycle.removed["stem"]) == both.argsort(stable=True)[: len(cycle.removed["stem"])].tolist()
    assert cycle.removed["stem"] == cycle.removed["outer"] and cycle.scores.keys() == {"stem", "inner", "outer"}
    assert result.stopped == "the budget is met"


def test_cycles_split_the_way_and_score_what_is_left(model, batches):
    original = copy.deepcopy(model)
    told = []
    result = prune(
        model,
        batches,
        IMAGE,
        target={"macs": 0.4},
        cycles=3,
        residual="stream",
        round_to=2,
        scored={"inner": "norm2"},
        retrain=lambda m, number: told.append((number, m.inner.out_channels)),
        evaluate=lambda m: 0.5,
    )
    widths = [cycle.filters["inner"] for cycle in result.cycles]
    assert widths == sorted(widths, reverse=True) == [12 - (12 - widths[-1]) * i // 3 // 2 * 2 for i in (1, 2, 3)]
    assert told == list(zip((1, 2, 3), widths, strict=True)) and count(model, IMAGE) == result.plan.after
    for earlier, later in zip(result.cycles, result.cycles[1:], strict=False):
        assert not set(earlier.removed["inner"]) & set(later.removed["inner"])
        assert len(later.scores["inner"].mean) == earlier.filters["inner"]
    for name, kept in result.kept.items():
        gone = [index for cycle in result.cycles for index in cycle.removed.get(name, ())]
        assert sorted([*gone, *kept]) == list(range(12))
    kept = list(result.kept["inner"])
    assert torch.equal(model.inner.weight, original.inner.weight[kept][:, list(result.kept["stem"])])


def test_batch_norms_are_estimated_anew_and_nothing_else_is_touched(model, batches):
    model.norm2.momentum = 0.3
    model.norm.eval()
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert recalibrate(model, batches) == 2
    outputs = [model.stem(images) for images, _ in batches]
    means = torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0)
    variances = torch.stack([out.transpose(0, 1).flatten(1).var(1) for out in outputs]).mean(0)
    assert torch.allclose(model.norm.running_mean, means, atol=1e-6)
    assert torch.allclose(model.norm.running_var, variances, rtol=1e-5)
    assert model.norm2.momentum == 0.3 and model.norm2.training and not model.norm.training
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    assert recalibrate(nn.Conv2d(3, 3, 1), iter(())) == 0
    with pytest.raises(ValueError, match="batches must hold at least one mini-batch, got none"):
        recalibrate(model, [])


def test_too_large_a_drop_rolls_back_to_the_last_good_cycle(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def retrain(model, number):
        optimizer.zero_grad()
        model.train()(batches[0][0]).square().mean().backward()
        optimizer.step()
        model.eval()

    retrain(model, 0)
    accuracies = iter([0.9, 0.88, 0.7])
    good = {}
    options = {"cycles": 3, "retrain": retrain, "evaluate": lambda m: next(accuracies), "optimizer": optimizer}

    def remember(cycle):
        if cycle.number == 1:
            good.update(copy.deepcopy(model.state_dict()))
            good["momentum"] = optimizer.state[model.inner.weight]["momentum_buffer"].clone()

    result = prune(model, batches, IMAGE, target={"macs": 0.5}, max_drop=0.05, on_cycle=remember, **options)
    assert len(result.cycles) == 1 and result.cycles[0].accuracy == 0.88
    drop = "cycle 2 fell from 0.9000 to 0.7000, more than max_drop 0.05"
    assert result.stopped == f"rolled back to cycle 1: {drop}"
    momentum = good.pop("momentum")
    assert model.inner.out_channels == result.cycles[0].filters["inner"] == len(model.inner.weight)
    assert all(torch.equal(value, good[name]) for name, value in model.state_dict().items())
    assert torch.equal(optimizer.state[model.inner.weight]["momentum_buffer"], momentum)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    retrain(model, 4)  # it goes on from there

    accuracies = iter([0.9, 0.1])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=re.escape("nothing was pruned: cycle 1 fell from 0.9000 to 0.1000")):
        prune(model, batches, IMAGE, target={"macs": 0.5}, max_drop=0.05, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nan_is_too_large_a_drop_and_no_accuracy(model, batches):
    values = iter([0.9, torch.tensor(0.88), math.nan])  # a number or a tensor of one
    options = {"target": {"macs": 0.5}, "cycles": 3, "evaluate": lambda m: next(values)}
    result = prune(model, batches, IMAGE, max_drop=0.05, **options)
    assert [cycle.accuracy for cycle in result.cycles] == [pytest.approx(0.88)] and "to nan, more" in result.stopped
    for value, rules in ((math.nan, {}), (math.nan, {"max_drop": 0.05}), (None, {}), ("0.9", {"max_drop": 0.05})):
        values = iter([value])
        with pytest.raises(ValueError, match=f"evaluate must return a finite number, got {value!r}"):
            prune(copy.deepcopy(model), batches, IMAGE, **options, **rules)


def test_a_snapshot_gives_back_the_same_parameters(model, batches):
    parameters = dict(model.named_parameters())
    before = copy.deepcopy(model.state_dict())
    snapshot = Snapshot(model)
    prune(model, batches, IMAGE, target={"params": 0.5})
    with torch.no_grad():
        model.head.weight.zero_()
    snapshot.restore()
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model(batches[0][0]).shape == (16, 4)


def test_limits_and_shares_take_the_steps_that_the_rules_allow(model, batches):
    options = {"limits": {"inner": 3}, "shares": {"inner": 0.1}}
    widths = [
        cycle.filters["inner"] for cycle in prune(copy.deepcopy(model), batches, IMAGE, **options, round_to=4).cycles
    ]
    assert widths == [8, 4]
    result = prune(model, batches, IMAGE, **options, max_ratio=0.5)
    assert [cycle.filters["inner"] for cycle in result.cycles] == [10, 8, 7, 6]  # minus int(0.1 n) + 1, down to half
    assert result.stopped == "the limits are reached as far as round_to, min_channels and max_ratio allow"


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"target": {"macs": 0.5}, "max_drop": 0.1}, "max_drop must be at least 0 and come with evaluate, got 0.1"),
        ({"target": {"macs": 0.5}, "cycles": 0}, "cycles must be an integer of at least 1, got 0"),
        ({"limits": {"inner": 4}, "shares": {"inner": 0.1}, "cycles": 2}, "cycles must be left out where shares"),
        ({"target": {"macs": 0.5}, "scored": {"stem": "norm"}}, "scored must name layers that are pruned and scored ("),
        ({"target": {"macs": 0.5}, "scored": {"inner": "relu"}}, "scored['inner'] must be a module of the model, got"),
        ({"target": {"macs": 0.5}, "limits": {"inner": 4}, "shares": {"inner": 0.1}}, "either target or limits"),
        ({"target": {"macs": 0.5}, "shares": {"inner": 0.1}}, "shares must come with limits"),
        (
            {"target": {"macs": 0.5}, "criterion": L1Norm(), "sigma": 2.0, "alpha": 1.0},
            "criterion must be given without what HRel is made with, got sigma, alpha as well",
        ),
        ({"target": {"macs": 0.5}, "criterion": "l1"}, "criterion must be a Criterion, such as CRITERIA['l1']"),
    ),
)
def test_a_wrong_argument_is_refused_before_any_work(arguments, message, model):
    def never():
        raise AssertionError("the batches were read")
        yield

    with pytest.raises(ValueError, match=re.escape(message)):
        prune(model, never(), IMAGE, **arguments)
    made = plan(model, IMAGE, target={"macs": 0.5})
    with pytest.raises(ValueError, match="plan must be given without target, limits and rules, got round_to"):
        prune(model, never(), IMAGE, plan=made, round_to=2)
