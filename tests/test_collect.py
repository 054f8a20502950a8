"""Scores collected by hooks: equal to scoring by hand, nothing left behind, mistakes named."""
# SPDX-License-Identifier: MIT

import gc
import importlib
import re
import tracemalloc
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack

import hrel_ext
from hrel_ext import PAPER_WHERE, IndistinguishableScoresWarning, _ops
from hrel_ext.collect import WHERE, collect
from hrel_ext.null import draw_permutations
from hrel_ext.zoo.models import MODELS

collect_module = importlib.import_module("hrel_ext.collect")  # the package's attribute is the function

# Networks with random weights, which need not tell their filters apart.
pytestmark = pytest.mark.filterwarnings("ignore::hrel_ext.IndistinguishableScoresWarning")


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
    sort, seen = _ops.sort_by_class, []
    monkeypatch.setattr(_ops, "sort_by_class", lambda labels: seen.append(labels) or sort(labels))
    collect(model, batches, sigma=2.0, label_sigma=1.0)  # whose label kernel is none of classes
    assert len(seen) == 3  # mini-batches, of two layers each


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    (
        (torch.arange(20).float(), TypeError, "labels must have an integer dtype, got torch.float32"),
        (torch.zeros(20, 2, dtype=torch.int64), ValueError, "labels must have shape (N,), got (20, 2)"),
        (torch.arange(20) - 7, ValueError, "batch 0, layer '0': labels must be class ids >= 0, got -7"),
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


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("failing", ("model", "loader", "score", "interrupt"))
def test_hooks_modes_and_function_modes_are_restored_wherever_it_fails(batches, where, failing):
    model = Functional()
    model.bn1.eval()

    def loader():
        yield batches[0]
        if failing == "loader":
            raise RuntimeError("planted")
        if failing == "score":
            yield torch.full((20, 1, 9, 9), torch.nan), batches[0][1]
        model.fail = {"model": RuntimeError("planted"), "interrupt": KeyboardInterrupt("planted")}.get(failing)
        yield batches[1]

    with pytest.raises(
        (RuntimeError, KeyboardInterrupt, ValueError), match=r"planted|layer 'conv1': acts must be finite"
    ):
        collect(model, loader(), layers=["conv1"], where=where, sigma=3.0)
    assert model.training and model.conv1.training and not model.bn1.training
    assert not any(module._forward_hooks for module in model.modules())
    assert _get_current_function_mode_stack() == []


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


class Functional(nn.Module):
    """Functions and methods instead of modules, in place and not; the pool of conv2 comes before its activation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.conv1, self.bn1, self.conv2, self.bn2 = (
            nn.Conv2d(1, 5, 2),
            nn.BatchNorm2d(5),
            nn.Conv2d(5, 4, 2),
            nn.BatchNorm2d(4),
        )
        self.fail = None
        for bn in (self.bn1, self.bn2):
            nn.init.uniform_(bn.running_mean), nn.init.uniform_(bn.running_var, 0.5, 2), nn.init.uniform_(bn.bias)

    def forward(self, x):
        x = functional.dropout(self.bn1(self.conv1(x)), 0.5, self.training)
        x = functional.max_pool2d(functional.relu(x, inplace=True), 2)  # (N, 5, 4, 4)
        if self.fail:
            raise self.fail
        x = functional.adaptive_avg_pool2d(self.bn2(self.conv2(x)), 2)
        return x.relu_().flatten(1)

    def tensors(self, x):
        """What is to be scored for conv1 and conv2, by ``where``."""
        conv1 = self.conv1(x)
        bn1 = self.bn1(conv1)
        relu1 = bn1.clamp(min=0)
        pool1 = functional.max_pool2d(relu1, 2)
        conv2 = self.conv2(pool1)
        bn2 = self.bn2(conv2)
        pool2 = functional.adaptive_avg_pool2d(bn2, 2)
        relu2 = pool2.clamp(min=0)
        return {"conv": (conv1, conv2), "bn": (bn1, bn2), "relu": (relu1, relu2), "pool": (pool1, pool2)}


def by_hand(make, batches, **options):
    """(B, F): the relevance of what ``make`` returns for the inputs, batch by batch."""
    with torch.no_grad():
        return torch.stack([hrel_ext.relevance(make(x), y, **options) for x, y in batches])


@pytest.mark.parametrize("where", WHERE)
def test_where_finds_functions_and_methods_in_place_or_not(batches, where):
    model = Functional()
    scores = collect(model, batches, where=where, sigma=1.5)
    model.eval()
    for i, name in enumerate(("conv1", "conv2")):
        expected = by_hand(lambda x, i=i: model.tensors(x)[where][i], batches[:3], sigma=1.5)
        assert torch.equal(scores[name].per_batch, expected)
    assert scores.header.where == where


def test_an_activation_in_place_changes_no_score_of_the_convolution(batches):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
    scores = collect(model, batches, sigma=2.0)
    assert torch.equal(scores["0"].per_batch, by_hand(model[0], batches[:3], sigma=2.0))


ACTIVATIONS = [
    getattr(nn, name)
    for name in (
        "ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Sigmoid Tanh "
        "Softplus Softsign LogSigmoid Tanhshrink Hardshrink Softshrink"
    ).split()
]
NORMS = (lambda: nn.GroupNorm(2, 4), lambda: nn.InstanceNorm2d(4), lambda: nn.SyncBatchNorm(4))
POOLS = (
    lambda: nn.MaxPool2d(2),
    lambda: nn.AvgPool2d(2),
    lambda: nn.AdaptiveMaxPool2d(2),
    lambda: nn.AdaptiveAvgPool2d(2),
    lambda: nn.LPPool2d(2, 2),
)


@pytest.mark.parametrize(
    ("where", "kinds"), (("relu", (*ACTIVATIONS, lambda: nn.Threshold(0.1, 0.0))), ("bn", NORMS), ("pool", POOLS))
)
def test_every_activation_norm_and_pool_counts(batches, where, kinds):
    for make in kinds:
        torch.manual_seed(6)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(), make(), nn.Flatten()).eval()
        if isinstance(model[2], nn.SyncBatchNorm):
            nn.init.uniform_(model[2].running_mean)
        scores = collect(model, batches[:1], where=where, sigma=2.0)
        assert torch.equal(scores["0"].per_batch, by_hand(model[:3], batches[:1], sigma=2.0)), make


def test_unpooling_is_no_pool(batches):
    indices = torch.arange(49).reshape(1, 1, 7, 7).expand(20, 2, 7, 7)
    with pytest.raises(ValueError, match=re.escape("conv (goes into max_unpool2d)")):
        collect(Branches(lambda y, x: functional.max_unpool2d(y, indices, 2)), batches, where="pool", sigma=2.0)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(7)
    return MODELS["resnet18"](num_classes=3).eval()


def test_where_follows_a_residual_network_whose_blocks_share_one_relu(resnet, rng):
    batches = [(torch.randn(9, 3, 32, 32, generator=rng), torch.arange(9) % 3)]
    stem = nn.Sequential(resnet.conv1, resnet.bn1, nn.ReLU(), resnet.maxpool)
    block = resnet.layer1[0]
    inner = nn.Sequential(stem, block.conv1, block.bn1, nn.ReLU())
    outer = nn.Sequential(inner, block.conv2, block.bn2)
    expected = {
        "conv": {"conv1": stem[:1], "layer1.0.conv1": inner[:2], "layer1.0.conv2": outer[:2]},
        "bn": {"conv1": stem[:2], "layer1.0.conv1": inner[:3], "layer1.0.conv2": outer[:3]},
        "relu": {"conv1": stem[:3], "layer1.0.conv1": inner},
        "pool": {"conv1": stem},
    }
    for where, parts in expected.items():
        scores = collect(resnet, batches, layers=list(parts), where=where, sigma=9.0)
        for name, part in parts.items():
            assert torch.equal(scores[name].per_batch, by_hand(part, batches, sigma=9.0)), (where, name)


def test_convolutions_without_the_tensor_are_refused_with_what_follows_them(resnet, rng):
    batches = [(torch.randn(9, 3, 32, 32, generator=rng), torch.arange(9) % 3)]
    message = (
        "layers must have the tensor of where='relu', got convolutions without it: "
        "layer1.0.conv2 (goes into batch_norm, add), layer2.0.downsample.0 (goes into batch_norm, add)"
    )
    layers = ["layer1.0.conv1", "layer1.0.conv2", "layer2.0.downsample.0"]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        collect(resnet, batches, layers=layers, where="relu", sigma=9.0)


class Branches(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.conv, self.after = nn.Conv2d(1, 2, 3), after

    def forward(self, x):
        return self.after(self.conv(x), x)


def added_in_place(y, x):
    y += x[:, :, 1:-1, 1:-1]
    return functional.relu(y)


def assigned(y, x):
    y[:, 0] = 0
    return functional.relu(y)


@pytest.mark.parametrize(
    ("after", "message"),
    (
        (added_in_place, "got convolutions without it: conv (goes into add)"),
        (assigned, "got convolutions without it: conv (goes into setitem)"),
        (lambda y, x: y, "got convolutions without it: conv (goes into nothing)"),
        (lambda y, x: functional.relu(torch.cat([y, y], 1)), "got convolutions without it: conv (goes into cat)"),
        (lambda y, x: torch.cat([y.relu(), torch.relu(-y), torch.tanh(y)]), "a tensor after 'relu' for 'conv' twice"),
    ),
)
def test_what_is_no_longer_the_output_of_the_convolution_is_not_taken_for_it(batches, after, message):
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        collect(Branches(after), batches, where="relu", sigma=2.0)


def test_layers_that_run_twice_or_never_are_named_for_other_tensors_too(batches):
    model = Branches(lambda y, x: functional.relu(y))
    model.unused = nn.Conv2d(1, 1, 3)
    with pytest.raises(ValueError, match="layers must run once in a forward pass, got no output from unused"):
        collect(model, batches, where="relu", sigma=2.0)
    twice = nn.Conv2d(1, 1, 3)
    with pytest.raises(ValueError, match="layers must run once in a forward pass, got '0' twice"):
        collect(nn.Sequential(twice, nn.ReLU(), twice, nn.ReLU()), batches, layers=["0"], where="relu", sigma=2.0)


def test_where_is_checked(model, batches):
    with pytest.raises(ValueError, match=re.escape("where must be one of 'conv', 'bn', 'relu', 'pool', got 'act'")):
        collect(model, batches, where="act")
    message = "where must be 'conv' unless all layers are convolutions, got 'relu' for 'first', a ReLU"
    with pytest.raises(ValueError, match=f"^{message}$"):
        collect(model, batches, layers={"first": "2"}, where="relu")


def test_two_names_may_stand_for_one_convolution(model, batches):
    for where in ("conv", "bn"):
        scores = collect(model, batches, layers={"a": "0", "b": model[0]}, where=where, sigma=2.0)
        assert torch.equal(scores["a"].per_batch, scores["b"].per_batch)
        assert scores.header.modules == {"a": "0", "b": "0"}


def test_the_settings_of_the_papers_are_of_networks_in_the_zoo(rng):
    assert set(PAPER_WHERE) <= set(MODELS) and set(PAPER_WHERE.values()) <= set(WHERE)
    torch.manual_seed(8)
    vgg16, batches = MODELS["vgg16"]().eval(), [(torch.randn(6, 3, 32, 32, generator=rng), torch.arange(6) % 3)]
    scores = collect(vgg16, batches, where=PAPER_WHERE["vgg16"], sigma=9.0)
    assert list(scores) == [f"conv{i}" for i in range(1, 14)]
    up_to_relu3 = vgg16[: list(dict(vgg16.named_children())).index("relu3") + 1]
    assert torch.equal(scores["conv3"].per_batch, by_hand(up_to_relu3, batches, sigma=9.0))


@pytest.mark.parametrize("where", WHERE)
def test_half_precision_of_autocast_is_scored_in_float32(batches, where, monkeypatch):
    model, seen = Functional(), []
    score = collect_module.terms_of_batch

    def watched(batch, *others):
        assert not torch.is_autocast_enabled("cpu")
        seen.append(batch.acts.dtype)
        return score(batch, *others)

    monkeypatch.setattr(collect_module, "terms_of_batch", watched)
    with torch.autocast("cpu", torch.bfloat16):
        scores = collect(model, batches, where=where, sigma=1.5)
    assert set(seen) == {torch.float32}
    model.eval()
    for i, name in enumerate(("conv1", "conv2")):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            maps = [model.tensors(x)[where][i] for x, _ in batches[:3]]
        assert where != "conv" or maps[0].dtype == torch.bfloat16
        expected = torch.stack([hrel_ext.relevance(m, y, sigma=1.5) for m, (_, y) in zip(maps, batches, strict=False)])
        assert torch.equal(scores[name].per_batch, expected)


def largest_copy(monkeypatch):
    """A list that will hold the bytes of every copy of maps that scoring makes."""
    copies, prepare = [0], collect_module.prepare

    def watched(maps, *others):
        batch = prepare(maps, *others)
        copies.append(
            0 if batch.acts.untyped_storage().data_ptr() == maps.untyped_storage().data_ptr() else batch.acts.nbytes
        )
        return batch

    monkeypatch.setattr(collect_module, "prepare", watched)
    return copies


class Strided(nn.Module):
    """A convolution of seven filters whose output is in half precision, or has no single stride over its pixels."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(9)
        self.conv, self.kind = nn.Conv2d(1, 7, 2), kind
        self.out = nn.Identity()

    def forward(self, x):
        y = self.conv(x)  # (N, 7, 8, 8)
        if self.kind == "half":
            y = y.bfloat16()
        if self.kind == "crop":
            y = y[:, :, 1:-1, 1:-1]
        if self.kind == "channels last":
            y = y.to(memory_format=torch.channels_last)
        return self.out(y)


@pytest.mark.parametrize(("kind", "side", "bytes_per_value"), (("half", 8, 4), ("crop", 6, 4)))
@pytest.mark.parametrize("sigma", (2.0, torch.linspace(1, 3, 7), "filter"), ids=("number", "tensor", "filter"))
def test_groups_of_filters_bound_the_copies_and_change_no_bit(batches, monkeypatch, kind, side, bytes_per_value, sigma):
    model, one_filter = Strided(kind), 20 * side * side * bytes_per_value
    whole = collect(model, batches, layers=["out"], sigma=sigma, permutations=3)["out"]
    copies = largest_copy(monkeypatch)
    for num_filters in (1, 2, 3, 7):
        copies[:] = [0]
        limit = num_filters * one_filter + one_filter // 2
        layer = collect(model, batches, layers=["out"], sigma=sigma, permutations=3, max_bytes=limit)["out"]
        assert max(copies) == num_filters * one_filter <= limit
        for part in ("per_batch", "widths", "null"):
            assert torch.equal(getattr(layer, part), getattr(whole, part))


@pytest.mark.parametrize("kind", ("float32", "channels last"))
def test_maps_that_are_scored_as_they_are_need_no_memory(batches, monkeypatch, kind):
    copies = largest_copy(monkeypatch)
    collect(Strided(kind), batches, layers=["out"], max_bytes=1)
    assert max(copies) == 0


@pytest.mark.parametrize(
    ("max_bytes", "sigma", "error", "message"),
    (
        (
            35839,
            None,
            ValueError,
            "batch 0, layer 'out': max_bytes must be at least 35840 to search one width for the layer, which takes a "
            'copy of all 7 filters at once (give sigma, or take "filter"), got 35839',
        ),
        (
            5119,
            2.0,
            ValueError,
            "batch 0, layer 'out': max_bytes must be at least 5120, the copy of one filter, got 5119",
        ),
        (0, 2.0, ValueError, "max_bytes must be >= 1, got 0"),
        (1e9, 2.0, TypeError, "max_bytes must be an int or None, got float"),
        (
            10240,
            torch.ones(2),
            ValueError,
            "batch 0, layer 'out': sigma must have shape (F,) = (7,) or (), got (2,)",
        ),
        (
            10240,
            torch.tensor([1, 1, 1, -1.0, 1, 1, 1]),
            ValueError,
            "batch 0, layer 'out', counted from filter 2: sigma must be > 0 and finite for every filter, got -1.0 "
            "for filter 1",
        ),
    ),
)
def test_limits_that_cannot_be_kept_are_named(batches, max_bytes, sigma, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        collect(Strided("half"), batches, layers=["out"], sigma=sigma, max_bytes=max_bytes)


@pytest.mark.parametrize("where", ("conv", "relu"))
def test_memory_is_flat_over_many_batches(where):
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 2), nn.ReLU())
    maps_alive, traced = [], []
    batch = torch.randn(6, 1, 5, 5), torch.arange(6) % 2

    def loader():
        for number in range(200):
            if number in (50, 199):
                gc.collect()
                tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor]
                maps_alive.append(sum(x.nbytes for x in tensors if x.dim() == 4))
                traced.append(tracemalloc.get_traced_memory()[0])
            yield batch

    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IndistinguishableScoresWarning)
            scores = collect(model, loader(), where=where, sigma=2.0)
    finally:
        tracemalloc.stop()
    assert scores["0"].count == 200
    assert maps_alive[0] == maps_alive[1]
    assert traced[1] - traced[0] < 149 * 4096  # the scores and widths of two layers are four small tensors a batch


def test_the_null_is_drawn_within_each_batch_by_one_generator(model, batches):
    scores = collect(model, batches, sigma=2.0, permutations=7, seed=11)
    plain = collect(model, batches, sigma=2.0)
    generator, draws = torch.Generator().manual_seed(11), []
    model.eval()
    for x, y in batches[:3]:
        maps, order = model[:4](x), y.argsort(stable=True)
        rows = []
        for row in draw_permutations(7, 20, generator):
            permuted = torch.empty_like(y).scatter_(0, order[row], y[order])
            rows.append(hrel_ext.relevance(maps, permuted, sigma=2.0))
        draws.append(torch.stack(rows))
    layer = scores["3"]
    torch.testing.assert_close(layer.null, torch.stack(draws).mean(0), rtol=0, atol=1e-4)
    assert torch.equal(layer.per_batch, plain["3"].per_batch) and plain["3"].null is None
    assert torch.equal(layer.debiased, layer.mean - layer.null.mean(0))
    assert torch.equal(layer.null, collect(model, batches, sigma=2.0, permutations=7, seed=11)["3"].null)
    assert not torch.equal(layer.null, collect(model, batches, sigma=2.0, permutations=7, seed=12)["3"].null)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"permutations": -1}, ValueError, "permutations must be >= 0, got -1"),
        ({"permutations": 2.0}, TypeError, "permutations must be an int, got float"),
        ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
        ({"alpha": 0}, ValueError, "alpha must be > 0 and finite, got 0"),
        (
            {"sigma": "narrow"},
            ValueError,
            "batch 0, layer '0': sigma must be a positive number, a tensor of shape (F,) or (), None,",
        ),
    ),
)
def test_wrong_arguments_are_named(model, batches, arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        collect(model, batches, **arguments)


def test_the_widths_are_kept(model, batches):
    model.eval()
    with torch.no_grad():
        maps = [model[0](x) for x, _ in batches[:3]]
    found = {
        per_filter: torch.stack(
            [hrel_ext.kernel_width(m, y, per_filter=per_filter) for m, (_, y) in zip(maps, batches, strict=False)]
        )
        for per_filter in (False, True)
    }
    given = torch.linspace(1, 2, 5)
    for sigma, rule, expected in (
        (None, "layer", found[False]),
        ("layer", "layer", found[False]),
        ("filter", "filter", found[True]),
        (2.5, "given", torch.full((3,), 2.5)),
        (given, "given", given.expand(3, 5)),
    ):
        scores = collect(model, batches, layers=["0"], sigma=sigma)
        assert torch.equal(scores["0"].widths, expected) and scores.header.sigma == rule


def test_the_header_says_what_the_scores_are_of(model, batches, tmp_path):
    scores = collect(
        model, batches, layers={"first": "0"}, where="bn", alpha=2, label_sigma=0.2, permutations=2, seed=4
    )
    header = scores.header
    assert header.modules == {"first": "0"} and header.where == "bn" and header.batch_size == 20
    assert (header.alpha, header.label_sigma, header.permutations, header.seed) == (2.0, 0.2, 2, 4)
    assert header.versions["torch"] == torch.__version__ and header.versions["hrel_ext"]
    assert scores.matches(model)
    scores.save(tmp_path / "scores.safetensors")
    loaded = hrel_ext.Scores.load(tmp_path / "scores.safetensors")
    assert loaded.header == header and torch.equal(loaded["first"].null, scores["first"].null)
    nn.init.zeros_(model[0].bias)
    assert not loaded.matches(model)


class Noise(nn.Module):
    """Filters whose maps are noise that rises with the class, by a strength for each filter."""

    def __init__(self, strength):
        super().__init__()
        self.strength, self.rng = strength, torch.Generator().manual_seed(12)

    def forward(self, labels):
        strength = torch.as_tensor(self.strength)[:, None]  # (F, 1)
        return torch.randn(len(labels), len(strength), 4, generator=self.rng) + strength * labels[:, None, None]


def test_a_layer_whose_filters_cannot_be_told_apart_is_warned_of():
    labels = torch.arange(24) % 3
    batches = [(labels, labels)] * 5
    message = (
        r"^layer 'noise': 5 mini-batches do not tell its 8 filters apart \(Friedman's test: p = 0\.\d+, Kendall's "
        r"W = 0\.\d+\); take more mini-batches, or do not rank these filters$"
    )
    with pytest.warns(IndistinguishableScoresWarning, match=message) as caught:
        collect(Noise([0.0] * 8), batches, layers={"noise": ""}, sigma=3.0)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert collect(Noise([0.0, 0.5, 1.0, 2.0]), batches, layers={"clear": ""}, sigma=3.0)["clear"].distinguishable
        assert collect(Noise([0.0] * 8), batches[:1], layers={"noise": ""}, sigma=3.0)["noise"].distinguishable is None
