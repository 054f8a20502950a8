"""Criteria against closed forms and loops, and what Torch-Pruning's pruner removes by them on real architectures."""
# SPDX-License-Identifier: MIT

import copy
import json
import math
import re
import warnings

import pytest
import torch
import torch_pruning
from torch import nn
from torch.nn.functional import cross_entropy, max_pool2d

import hrel_ext
from hrel_ext.collect import collect
from hrel_ext.pruning import (
    CRITERIA,
    ActivationVariance,
    AlignmentElimination,
    BatchNormScale,
    GroupImportance,
    HRank,
    HRel,
    HRelDebiased,
    HRelImportance,
    HRelSet,
    L1Norm,
    L2Norm,
    Random,
    Taylor,
    TorchPruningCriterion,
    prune,
)
from hrel_ext.pruning.importance import _pairwise_different
from hrel_ext.zoo.models import MODELS, lenet5

pytestmark = pytest.mark.filterwarnings(
    "ignore::hrel_ext.IndistinguishableScoresWarning"
)  # of networks without training


class Passes:
    """Mini-batches that count how often they are gone through."""

    def __init__(self, *batches):
        self.batches, self.count = batches, 0

    def __iter__(self):
        self.count += 1
        return iter(self.batches)


def make_batches(rng, channels, size, num=1, samples=12):
    labels = torch.arange(samples) % 3
    shape = (samples, channels, size, size)
    return Passes(*((torch.rand(shape, generator=rng) + labels[:, None, None, None] / 3, labels) for _ in range(num)))


def small_net(first=4):
    torch.manual_seed(3)
    layers = [nn.Conv2d(2, first, 3), nn.BatchNorm2d(first), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    net = nn.Sequential(*layers, nn.Conv2d(first, 5, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(5 * 4, 3))
    net[1].weight.data.uniform_(-1, 1)
    net[1].running_mean.uniform_(-0.2, 0.2)
    return net


@pytest.fixture
def net():
    return small_net()


@pytest.fixture
def batches(rng):
    return make_batches(rng, 2, 8, num=3)


def maps_at(net, images, at):
    return net[: at + 1].eval()(images).detach().double()


# Each criterion against a loop


def test_weight_norms_are_those_of_a_loop(net):
    for name in ("0", "4"):
        weight = net.get_submodule(name).weight
        first, second = L1Norm().scores(net)[name], L2Norm().scores(net)[name]
        for f in range(len(weight)):
            values = [value.item() for value in weight[f].flatten()]
            assert first[f].item() == pytest.approx(sum(map(abs, values)), rel=1e-12)
            assert second[f].item() == pytest.approx(math.hypot(*values), rel=1e-12)


def test_batch_norm_scale_is_that_of_the_norm_behind_the_convolution(net, batches):
    criterion = BatchNormScale(batches)
    assert list(criterion.scores(net)) == ["0"]
    assert torch.equal(criterion.scores(net)["0"], net[1].weight.detach().abs().double())
    assert criterion.unscored == {"4": "is followed by 0 batch norms"}
    message = "layers must each be followed by one batch norm with weights: 4 (is followed by 0 batch norms)"
    with pytest.raises(ValueError, match=re.escape(message)):
        criterion.scores(net, ["0", "4"])


@pytest.mark.parametrize(("where", "at"), [("conv", 0), ("bn", 1), ("relu", 2), ("pool", 3)])
def test_variance_is_that_of_a_loop_on_the_tensor_that_is_named(net, batches, where, at):
    scores = ActivationVariance(batches, where=where).scores(net, ["0"])["0"]
    by_module = ActivationVariance(batches).scores(net, {"0": str(at)})["0"]
    expected = torch.zeros(4, dtype=torch.float64)
    for images, _ in batches.batches:
        maps = maps_at(small_net(), images, at)
        for f in range(4):
            mean = sum(maps[:, f]) / len(maps)
            expected[f] += sum((x - mean).square().sum() for x in maps[:, f]) / len(maps) / 3
    assert torch.allclose(scores, expected, rtol=1e-6, atol=0)
    assert torch.equal(scores, by_module)


def test_hrank_is_the_mean_rank_of_the_maps(net, batches):
    images = batches.batches[0][0].clone()
    images[0, :, 2:] = images[0, :, :1]  # a map of low rank
    batches.batches[0][0].copy_(images)
    scores = HRank(batches, where="relu").scores(net, ["0"])["0"]
    ranks = torch.zeros(4, dtype=torch.float64)
    for images, _ in batches.batches:
        maps = net[:3].eval()(images).detach()
        for n in range(len(maps)):
            for f in range(4):
                ranks[f] += torch.linalg.matrix_rank(maps[n, f]).item() / len(maps) / 3
    assert torch.allclose(scores, ranks, rtol=1e-12, atol=0)
    assert len(ranks.unique()) > 2 and ranks.max() < 6


@pytest.mark.parametrize(("where", "at"), [("conv", 0), ("relu", 2)])
def test_taylor_is_the_gradient_of_each_sample_times_its_map(net, batches, where, at):
    scores = Taylor(batches, where=where).scores(net, ["0", "4"])
    expected = {"0": torch.zeros(4, dtype=torch.float64), "4": torch.zeros(5, dtype=torch.float64)}
    net.eval()
    for images, labels in batches.batches:
        for image, label in zip(images, labels, strict=True):
            for name, cut in (("0", at), ("4", 4 if where == "conv" else 5)):
                maps = net[: cut + 1](image[None]).detach().clone().requires_grad_()
                # The rest of the network must not write into the leaf.
                cross_entropy(net[cut + 1 :](maps * 1), label[None]).backward()
                product = (maps.grad * maps).detach().double()[0].flatten(1).mean(1)  # (F,)
                expected[name] += product.abs() / len(images) / len(batches.batches)
    for name, values in expected.items():
        assert torch.allclose(scores[name], values, rtol=1e-4, atol=1e-9)


def test_taylor_needs_no_trainable_parameter_and_leaves_no_gradient(net, batches):
    scores = Taylor(batches).scores(net)
    frozen = small_net().requires_grad_(False)
    for name, values in Taylor(batches).scores(frozen).items():
        assert torch.equal(values, scores[name]) and values.max() > 0
    assert all(p.grad is None for p in (*net.parameters(), *frozen.parameters()))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(images.grad is None and not images.requires_grad for images, _ in batches.batches)


def test_taylor_takes_the_map_before_what_is_done_to_it_in_place(rng):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 1)

        def forward(self, x):
            return self.conv(x).add_(5).square().mean((2, 3))

    torch.manual_seed(0)
    model, images, labels = Shifted(), torch.rand(6, 1, 2, 2, generator=rng), torch.arange(6) % 3
    maps = model.conv(images).detach().requires_grad_()
    cross_entropy((maps + 5).square().mean((2, 3)), labels, reduction="sum").backward()
    expected = (maps.grad * maps).detach().double().mean((2, 3)).abs().mean(0)
    assert torch.allclose(Taylor([(images, labels)]).scores(model)["conv"], expected, rtol=1e-5, atol=0)


def test_alignment_elimination_is_that_of_kernels_made_anew(net, batches):
    scores = AlignmentElimination(batches).scores(net, ["0"])["0"]
    squared, widths = [], []
    for images, _ in batches.batches:
        maps = maps_at(small_net(), images, 0)
        squared.append(torch.stack([torch.cdist(*[maps[:, f].flatten(1)] * 2) ** 2 for f in range(4)]))
        widths.append(squared[-1].sum(0).sqrt().mean())
        scaled = AlignmentElimination(batches)._of_maps("0", maps)  # the order alone hardly depends on the width
        rows, columns = torch.triu_indices(12, 12, offset=1)
        assert torch.allclose(scaled, squared[-1][:, rows, columns] / widths[-1] ** 2, rtol=1e-9)

    def alignment(kept):
        total = 0
        for distances, width in zip(squared, widths, strict=True):
            some, whole = (torch.exp(-distances[list(s)].sum(0) / width**2) for s in (kept, range(4)))
            total += (some * whole).sum() / (some.norm() * whole.norm())
        return total

    left, order = {0, 1, 2, 3}, []
    while left:
        order.append(max(sorted(left), key=lambda f: alignment(left - {f})))
        left.remove(order[-1])
    assert scores.argsort().tolist() == order
    assert sorted(scores.tolist()) == [0, 1, 2, 3]


def test_alignment_elimination_drops_dead_filters_first_and_one_of_two_copies_early(batches):
    net = small_net(first=6)
    with torch.no_grad():
        for dead in (1, 4):
            net[0].weight[dead] = 0
        net[0].weight[5] = net[0].weight[2]
        net[0].bias[5] = net[0].bias[2]
    scores = AlignmentElimination(batches).scores(net, ["0"])["0"]
    assert scores.argsort().tolist()[:2] == [1, 4]
    assert scores[2] < scores[5]  # equal until one of them is gone, so the lower index went first


@pytest.mark.parametrize(("where", "at"), [("conv", 4), ("relu", 5)])
def test_hrel_set_takes_in_each_step_the_filter_that_makes_the_joint_relevance_largest(net, batches, where, at):
    options = {"sigma": 2.0, "alpha": 2.0, "label_sigma": 0.3}
    scores = HRelSet(batches, where=where, **options).scores(net, ["4"])["4"]
    maps = [(maps_at(small_net(), images, at), labels) for images, labels in batches.batches]

    def objective(taken):
        return sum(hrel_ext.joint_relevance(acts, labels, taken, **options) for acts, labels in maps)

    taken = []
    while len(taken) < 5:
        taken.append(max(set(range(5)) - {*taken}, key=lambda f: objective([*taken, f])))
    assert scores.argsort(descending=True).tolist() == taken != list(range(5))
    assert sorted(scores.tolist()) == [0, 1, 2, 3, 4]
    by_layer = HRelSet(batches, where=where).scores(net)  # the width of each layer, and all layers in one pass
    order = hrel_ext.select_filters(maps, keep=5, sigma="layer").order
    assert by_layer["4"].argsort(descending=True).tolist() == order.tolist() and list(by_layer) == ["0", "4"]


def test_hrel_set_takes_dead_filters_last(batches):
    net = small_net(first=6)
    with torch.no_grad():
        for dead in (1, 4):
            net[0].weight[dead] = 0
    scores = HRelSet(batches).scores(net, ["0"])["0"]
    assert scores.argsort().tolist()[:2] == [4, 1]  # equal, so the lower index was taken first


def test_hrel_is_collect_and_debiased_subtracts_the_null(net, batches):
    options = {"sigma": 3.0, "alpha": 2.0, "where": "relu"}
    scores = HRel(batches, **options).scores(net)
    collected = collect(net, batches, permutations=7, seed=5, **options)
    debiased = HRelDebiased(batches, permutations=7, seed=5, **options).scores(net)
    for name in ("0", "4"):
        assert torch.equal(scores[name], collected[name].mean.double())
        assert torch.allclose(debiased[name], collected[name].debiased.double(), rtol=0, atol=1e-6)
        assert (debiased[name] < scores[name]).all()
    assert isinstance(HRel(batches).table(net)["0"], hrel_ext.LayerScores)


def test_random_repeats_and_differs_by_seed_layer_and_width(net):
    scores = Random(seed=1).scores(net)
    assert all(torch.equal(scores[name], Random(seed=1).scores(net)[name]) for name in scores)
    assert not torch.equal(scores["0"], Random(seed=2).scores(net)["0"])
    assert not torch.equal(scores["0"], scores["4"][:4])
    assert not torch.equal(scores["0"], Random(seed=1).scores(small_net(first=5))["0"][:4])


def test_an_importance_of_torch_pruning_is_a_criterion_too(net, batches):
    magnitude = torch_pruning.importance.MagnitudeImportance(p=1, group_reduction="first", normalizer=None)
    net[4].requires_grad_(False).train()
    criterion = TorchPruningCriterion(batches, importance=magnitude)
    for name, values in criterion.scores(net, ["0", "4"]).items():
        assert torch.allclose(values, L1Norm().scores(net)[name], rtol=1e-6)
    assert net.training and not net[4].weight.requires_grad and net[0].weight.requires_grad
    with pytest.raises(ValueError, match=re.escape("that the importance can score: 4 (the importance gives None)")):
        TorchPruningCriterion(batches, importance=lambda group: None).scores(net, ["4"])


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_is_made_alike_and_leaves_the_network_as_it_was(name, net, batches):
    net.train()
    net[1].eval()
    state = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    criterion = CRITERIA[name](batches)
    assert criterion.name == name
    assert "batches" not in criterion.options and json.loads(json.dumps(criterion.options)) == criterion.options
    for layer, values in criterion.scores(net).items():
        assert values.shape == (net.get_submodule(layer).out_channels,) and values.dtype == torch.float64
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


# Stale scores


def test_scores_are_made_anew_whenever_a_value_changed_and_only_then(net, batches):
    criterion = HRel(batches)
    kept = criterion.scores(net)
    assert criterion.scores(net) is kept and batches.count == 1
    changes = [
        lambda: net[0].weight.data.neg_(),  # the same norm, and the same version counter
        lambda: net[1].running_var.mul_(2),
        lambda: net[4].weight.data.copy_(net[4].weight.data.flip(0)),
    ]
    for number, change in enumerate(changes, start=2):
        change()
        fresh = criterion.scores(net)
        assert batches.count == number
        assert all(torch.equal(values, collect(net, batches.batches)[name].mean) for name, values in fresh.items())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    cross_entropy(net(batches.batches[0][0]), batches.batches[0][1]).backward()
    optimizer.step()
    criterion.scores(net)
    criterion.scores(net, ["0"])  # another question
    net[2] = nn.Tanh()  # another network of the same weights
    criterion.scores(net, ["0"])
    assert batches.count == 7


def test_a_criterion_holds_on_to_no_network(net, batches):
    importance = HRelImportance(batches)
    scores = importance.criterion.scores(net)
    other, copied = copy.deepcopy((net, importance))
    assert copied.criterion.scores(other).keys() == scores.keys() and copied.criterion.batches.count == 1
    with torch.no_grad():
        other[0].weight[0] = 0
    copied.criterion.scores(other)
    assert importance.criterion.scores(net) is scores
    assert not any(isinstance(value, nn.Module) for value in held(importance))


def held(value):
    """Everything that an object of this package reaches through its attributes and containers."""
    yield value
    inside = vars(value).values() if hasattr(value, "__dict__") else value.values() if isinstance(value, dict) else ()
    for item in inside:
        yield from held(item)


# What is refused


def test_a_filter_that_is_not_finite_is_named(net, batches):
    with torch.no_grad():
        net[0].weight[2, 0, 0, 0] = math.nan
    refusals = {
        HRel: "layer '0': acts must be finite, filter 2 holds NaN or Inf",
        ActivationVariance: "layer '0': maps must be finite, filter 2 holds NaN or Inf",
        Taylor: "layer '0': maps must be finite, filter 2 holds NaN or Inf",
        HRank: "layer '0': maps must be finite, filter 2 holds NaN or Inf",
        AlignmentElimination: "layer '0': maps must be finite, filter 2 holds NaN or Inf",
        HRelSet: "layer '0': maps must be finite, filter 2 holds NaN or Inf",
        L1Norm: "scores must be finite, got nan for filter 2 of layer '0'",
    }
    for criterion, message in refusals.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            criterion(batches).scores(net)
    with pytest.raises(ValueError, match=r"layer '0'.*filter 2"):
        HRelImportance(batches, sigma=1.0).criterion.scores(net)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["1"], "layers must name convolutions or linear layers of the model, got '1'"),
        (["9"], "layers must be among the model's modules"),
        ({"0": "4"}, "what is scored for '0' must have one channel per filter (4), got 5"),
    ],
)
def test_a_layer_that_cannot_be_scored_is_refused(net, batches, layers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ActivationVariance(batches).scores(net, layers)


def test_wrong_options_are_refused(net, batches):
    with pytest.raises(ValueError, match="batches must be re-iterable, got generator, which one pass uses up"):
        HRel(batch for batch in batches)
    with pytest.raises(ValueError, match="batches must hold at least one mini-batch, got none"):
        HRel([]).scores(net)
    with pytest.raises(ValueError, match="reduction must be one of 'max', 'mean', got 'sum'"):
        HRelImportance(batches, reduction="sum")
    with pytest.raises(ValueError, match="permutations must be >= 1, got 0"):
        HRelDebiased(batches, permutations=0)


# Ties


def test_equal_scores_become_different_by_index_and_nothing_else_moves(rng):
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 5e-324, math.pi, 1e300, 1 + 2**-52, 2 / 3], dtype=torch.float64)
    scores = values[torch.randint(len(values), (200,), generator=rng)]
    for spare_bits in (0, 6):
        different = _pairwise_different(scores, spare_bits)
        order = sorted(range(200), key=lambda i: (scores[i].item(), i))
        assert different.argsort().tolist() == order and len(different.unique()) == 200
        assert torch.allclose(different, scores, rtol=1e-11, atol=1e-300)
        total = torch.zeros(200, dtype=torch.float64)
        for _ in range(2**spare_bits):  # one after the other, the worst order
            total += different
        assert torch.equal(total / 2**spare_bits, different)
    alone = torch.rand(50, dtype=torch.float64, generator=rng)
    assert torch.equal(_pairwise_different(alone), alone)


@pytest.mark.parametrize("groups", [1, 4, 28])
@pytest.mark.parametrize("criterion", [HRel, L1Norm])
def test_equal_filters_go_by_index(rng, groups, criterion):
    torch.manual_seed(0)
    size = 40 * groups
    convs = [nn.Conv2d(2, size, 1), nn.Conv2d(size, size, 1, groups=groups), nn.Conv2d(size, 3, 1)]
    net = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2]).double()  # norms with all 53 bits
    with torch.no_grad():
        for conv in convs[:2]:  # dead ones for HRel, and ones of equal norms that are not 0
            conv.weight.fill_(0 if criterion is HRel else 0.1)
    images = torch.rand(12, 2, 3, 3, dtype=torch.float64, generator=rng)
    importance = GroupImportance(criterion([(images, torch.arange(12) % 3)]))
    pruner = torch_pruning.pruner.BasePruner(
        net, images, importance, pruning_ratio=0.5, ignored_layers=[net[4]], in_channel_groups={}, out_channel_groups={}
    )
    for group in pruner.DG.get_all_groups(ignored_layers=[net[4]]):  # the average that the pruner takes of blocks
        assert (importance(group).view(groups, -1).mean(0).diff() > 0).all()
    pruner.step()
    first = [40 * block + position for block in range(groups) for position in range(20)]  # the same of each block
    history = pruner.pruning_history()
    assert history and all(sorted(indices) == first for _, _, indices in history)


# On real architectures, by Torch-Pruning's own pruner


class Mixed(nn.Module):
    """A concatenation with an addition to it, grouped and depthwise convolutions, functions in place of modules."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.left = nn.Conv2d(12, 12, 3, padding=1)
        self.right = nn.Conv2d(12, 8, 1)
        self.depth = nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False)
        self.beside = nn.Conv2d(12, 20, 1)
        self.middle = nn.Conv2d(20, 12, 1)
        self.grouped = nn.Conv2d(12, 24, 3, padding=1, groups=3)
        self.last = nn.Conv2d(24, 9, 1)
        self.unused = nn.Conv2d(3, 7, 1)
        self.head = nn.Linear(9, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        both = torch.cat((self.left(x), self.right(x)), 1).relu_()
        x = max_pool2d(self.depth(both) + self.beside(x), 2)
        x = self.grouped(self.middle(x).relu())
        return self.head(self.last(x).relu().mean((2, 3)))


def expected_order(model, example, root, table):
    """The root's channels, lowest first, by a loop over the group that is as plain as can be; and the scores."""
    graph = torch_pruning.DependencyGraph().build_dependency(model, (example,))
    layer = model.get_submodule(root)
    names = {module: name for name, module in model.named_modules()}
    group = graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, list(range(layer.out_channels)))
    found, blocks = {channel: [] for channel in range(layer.out_channels)}, 1
    for item in group:
        module, name = item.dep.layer, names.get(item.dep.layer)
        if isinstance(module, nn.Conv2d):
            if 1 < module.groups < module.out_channels:
                blocks = module.groups
            if graph.is_out_channel_pruning_fn(item.dep.pruning_fn):
                for channel, at in zip(item.idxs, item.root_idxs, strict=True):
                    found[at].append(table[name][channel].item())
    means = [sum(values) / len(values) for values in found.values()]
    size = len(means) // blocks
    by_position = [sum(means[i::size]) / blocks for i in range(size)]
    return blocks, by_position


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "densenet121", "resnext50_32x4d", "mixed"])
def test_the_lowest_channels_of_every_group_go(name, rng):
    torch.manual_seed(1)
    if name == "mixed":
        model = Mixed()
    elif name in MODELS:
        model = MODELS[name](num_classes=3)
    else:
        model = pytest.importorskip("torchvision.models").get_model(name, weights=None, num_classes=3)
    model.eval()
    heads = [module for module in model.modules() if isinstance(module, nn.Linear)]
    batches = make_batches(rng, 3, 32, samples=6)
    images = batches.batches[0][0]
    importance = HRelImportance(batches, where="conv")
    pruner = torch_pruning.pruner.BasePruner(
        model,
        images[:1],
        importance,
        pruning_ratio=0.4,
        ignored_layers=heads,
        in_channel_groups={},
        out_channel_groups={},
    )
    original = copy.deepcopy(model)
    widths = {n: module.out_channels for n, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    model.requires_grad_(False)  # traced already; the scores do not need gradients
    pruner.step()
    assert batches.count == 1 and importance.unscored == {}
    assert model(images).shape == (6, 3)
    if name == "mixed":
        assert importance.criterion.unscored == {"unused": "never ran in a forward pass"}
    history = pruner.pruning_history()
    table = importance.criterion._scores
    layers = [n for n in widths if n in table]
    reference = collect(original, batches, layers=layers)
    assert all(torch.equal(table[n], reference[n].mean.double()) for n in layers)
    pruned = {n: removed for n, is_out, removed in history if is_out}
    assert len(pruned) == len(history) > 3
    # In a large network most groups are of the same kind.
    for root in [*pruned][:: max(1, len(pruned) // 8)]:
        blocks, scores = expected_order(original, images[:1], root, table)
        removed = [at % len(scores) for at in pruned[root]]
        lowest = {at for at in removed}
        assert len(removed) == len(lowest) * blocks and len(lowest) == len(scores) - int(len(scores) * 0.6)
        others = [scores[i] for i in range(len(scores)) if i not in lowest]
        assert max(scores[i] for i in lowest) <= min(others) + 1e-12


def test_each_step_scores_once_and_the_network_as_it_is_then(net, batches):
    importance = HRelImportance(batches)
    pruner = torch_pruning.pruner.BasePruner(
        net, batches.batches[0][0], importance, pruning_ratio=0.5, iterative_steps=2, ignored_layers=[net[7]]
    )
    for step in (1, 2):
        before = copy.deepcopy(net)
        pruner.step()
        assert batches.count == step
        scores = collect(before, batches.batches)["0"].mean
        kept = scores.argsort(stable=True)[1:].sort().values
        assert torch.equal(net[0].weight, before[0].weight[kept])
        with torch.no_grad():
            net[0].weight.add_(torch.linspace(0, 1, net[0].weight.numel()).view_as(net[0].weight))  # as training would
    assert [net[0].out_channels, net[4].out_channels] == [2, 2]


def test_max_and_mean_reduce_what_meets_in_a_residual_stream(rng):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.head((self.a(x) + self.b(x)).relu()).mean((2, 3))

    torch.manual_seed(4)
    model, images = Residual(), torch.rand(6, 3, 4, 4, generator=rng)
    table = L1Norm().scores(model)
    graph = torch_pruning.DependencyGraph().build_dependency(model, (images,))
    for channels in (list(range(6)), [4, 1]):
        group = graph.get_pruning_group(model.a, torch_pruning.prune_conv_out_channels, channels)
        a, b = table["a"][channels], table["b"][channels]
        assert torch.equal(GroupImportance(L1Norm(), reduction="max")(group), torch.maximum(a, b))
        assert torch.allclose(GroupImportance(L1Norm())(group), (a + b) / 2, rtol=1e-15)
        assert torch.equal(GroupImportance(L1Norm(), layers=["b"])(group), b)


def test_what_is_not_scored_is_not_pruned_and_named(rng):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.twice, self.by_hand = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1)
            self.last, self.head = nn.Conv2d(6, 8, 1), nn.Linear(8, 2)

        def forward(self, x):
            x = self.twice(self.twice(self.first(x)).relu())
            x = nn.functional.conv2d(x, self.by_hand.weight, self.by_hand.bias)
            return self.head(self.last(x).mean((2, 3)))

    torch.manual_seed(0)
    model, batches = Odd(), make_batches(rng, 3, 4)
    importance = HRelImportance(batches)
    scores = importance.criterion.scores(model)
    assert list(scores) == ["first", "last"]
    reasons = {"twice": "ran 2 times in a forward pass", "by_hand": "never ran in a forward pass"}
    assert importance.criterion.unscored == reasons
    with pytest.raises(ValueError, match="layers must run once in a forward pass, got 'twice' twice"):
        importance.criterion.scores(model, ["twice"])
    chain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 16, 6), nn.Linear(6, 2))
    pruner = torch_pruning.pruner.BasePruner(
        chain, batches.batches[0][0], importance, pruning_ratio=0.5, ignored_layers=[chain[3]]
    )
    with pytest.warns(UserWarning, match="the group of '2' is not pruned: 2 is not scored"):
        pruner.step()
    assert importance.unscored == {"2": "2 is not scored"}
    assert chain[0].out_channels == 2 and chain[2].out_features == 6
    group = pruner.DG.get_pruning_group(chain[0], torch_pruning.prune_conv_out_channels, [0, 1])
    assert len(importance(group)) == 2 and importance.unscored == {}  # scored afresh
    with pytest.raises(ValueError, match=r"no layer can be scored: 0 \(goes into flatten, not 'relu'\)"):
        HRel(batches, where="relu").scores(chain)


# In the engine of this package


def test_prune_takes_any_criterion(rng):
    torch.manual_seed(5)
    batches = make_batches(rng, 1, 28, num=2, samples=20)
    limits, shares = {"conv1": 15, "conv2": 40}, {"conv1": 0.1, "conv2": 0.1}
    network = lenet5()
    one, two, three = (copy.deepcopy(network) for _ in range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        default = prune(one, batches, batches.batches[0][0][:1], limits=limits, shares=shares)
        given = prune(two, batches, batches.batches[0][0][:1], limits=limits, shares=shares, criterion=HRel(batches))
    assert default.kept == given.kept
    assert torch.equal(default.cycles[0].scores["conv1"].per_batch, given.cycles[0].scores["conv1"].per_batch)
    result = prune(
        three, batches, batches.batches[0][0][:1], limits={"conv1": 15}, shares={"conv1": 0.3}, criterion=L1Norm()
    )
    norms = network.conv1.weight.abs().sum((1, 2, 3))
    assert result.cycles[0].removed["conv1"] == tuple(norms.argsort()[:5].tolist())
    assert torch.allclose(result.cycles[0].scores["conv1"].mean, norms.double(), rtol=1e-6)
