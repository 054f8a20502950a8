"""Plans and budgets: what is asked is got, rules hold, nothing is silent; and the networks of the zoo, pruned."""
# SPDX-License-Identifier: MIT

import copy
import json
import os
import re
import statistics
import subprocess
import sys
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as masks

from hrel_ext import LayerScores
from hrel_ext.pruning import (
    L1Norm,
    Latency,
    count,
    export_onnx,
    export_pt2,
    load_pruned,
    plan,
    prune,
    pruner,
    save_pruned,
)
from hrel_ext.pruning import cost as cost_module
from hrel_ext.pruning import planning as planning_module
from hrel_ext.zoo.models import MODELS, lenet5

IMAGE = torch.zeros(1, 3, 32, 32)


class Branches(nn.Module):
    """A grouped convolution, a concatenation and a sum."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=2)
        self.side = nn.Conv2d(16, 9, 1)
        self.mix = nn.Conv2d(21, 10, 3, padding=1, bias=False)
        self.last = nn.Conv2d(10, 10, 3, padding=1)
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.mix(torch.cat([self.grouped(x), self.side(x)], 1)).relu()
        x = x + self.last(x).relu()
        return self.head(x.mean((2, 3)))


def make(name):
    torch.manual_seed(3)
    if name == "branches":
        return Branches()
    if name == "resnext50_32x4d":
        return pytest.importorskip("torchvision").models.resnext50_32x4d(weights=None, num_classes=10)
    return MODELS[name]()


@pytest.fixture
def random_scores(monkeypatch):
    """Scores with ties, drawn in place of being collected, and batch norms left alone: it is about the removal."""

    class Drawn:
        def __init__(self, *_, **__):
            pass

        def table(self, model, layers):
            rng = torch.Generator().manual_seed(7)
            widths = {name: model.get_submodule(name).out_channels for name in layers}
            drawn = {name: torch.randint(0, 9, (1, w), generator=rng).float() for name, w in widths.items()}
            return {name: LayerScores(scores, widths=torch.ones(1)) for name, scores in drawn.items()}

    monkeypatch.setattr(pruner, "HRel", Drawn)
    monkeypatch.setattr(pruner, "recalibrate", lambda *_: 0)


# Name, image, budget, and how residual streams are treated; ResNeXt's steps are 32 filters wide.
MATRIX = (
    ("branches", (3, 32, 32), {"macs": 0.4}, "stream"),
    ("branches", (3, 32, 32), {"params": 0.6}, "inner"),
    ("lenet5", (1, 28, 28), {"macs": 0.4}, "inner"),
    ("vgg16", (3, 32, 32), {"params": 0.3}, "inner"),
    ("resnet20", (3, 32, 32), {"macs": 0.4}, "inner"),
    ("resnet20", (3, 32, 32), {"macs": 0.25}, "stream"),
    ("resnet56", (3, 32, 32), {"macs": 0.4}, "stream"),
    ("resnet18", (3, 32, 32), {"macs": 0.4}, "stream"),
    ("resnet50", (3, 32, 32), {"macs": 0.4}, "stream"),
    ("mobilenet_v2", (3, 32, 32), {"params": 0.5}, "stream"),
    ("densenet121", (3, 32, 32), {"macs": 0.4}, "inner"),
    ("resnext50_32x4d", (3, 32, 32), {"macs": 0.5}, "inner"),
)
# HREL_EXPORT=all takes minutes more than the one; tests/test_export.py has LeNet-5.
ALL = sorted(f"{name}-{residual}" for name, _, _, residual in MATRIX)
EXPORTED = ALL if os.environ.get("HREL_EXPORT") == "all" else ["branches-stream"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Where the networks of the matrix are saved, each in a folder of its own."""
    return tmp_path_factory.mktemp("saved")


def prune_and_save(name, shape, target, residual, saved):
    """The pruned network, the whole one, what was done, and the inputs whose outputs are saved with it."""
    model = make(name).eval()
    original = copy.deepcopy(model)
    inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    result = prune(model, [(inputs, torch.arange(2))], inputs[:1], target=target, residual=residual)
    folder = saved / f"{name}-{residual}"
    save_pruned(folder, model, result, input_shape=shape, model_name=name if name in MODELS else None)
    with torch.no_grad():
        torch.save({"inputs": inputs, "outputs": model(inputs)}, folder / "expected.pt")
    return model, original, result, inputs


def counted_by_fvcore(model, image):
    """Multiply-accumulates of convolutions and linear layers, and of convolutions alone, as fvcore traces them."""
    with warnings.catch_warnings():  # of torch.jit, in which it traces
        warnings.simplefilter("ignore")
        counter = (
            FlopCountAnalysis(model.eval(), image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        )
        by_operator = counter.by_operator()
    return by_operator["conv"] + by_operator["linear"], by_operator["conv"]


@pytest.mark.parametrize(("name", "shape", "target", "residual"), MATRIX)
def test_a_network_is_pruned_to_its_budget(name, shape, target, residual, random_scores, saved):
    model, original, result, inputs = prune_and_save(name, shape, target, residual, saved)
    image = torch.zeros(1, *shape)

    # The budget, counted by another library.
    ((quantity, share),) = target.items()
    cost, whole = count(model, image), count(original, image)
    assert counted_by_fvcore(model, image) == (cost.macs, cost.conv_macs) and cost == result.plan.after
    assert counted_by_fvcore(original, image) == (whole.macs, whole.conv_macs) and whole == result.plan.before
    left = cost.macs / whole.macs if quantity == "macs" else cost.parameters / whole.parameters
    assert share - 0.02 <= left <= share

    # The lowest go, of equal ones the first; the plan says of each layer what became of it.
    (cycle,) = result.cycles
    for group, kept in zip(result.plan.groups, result.plan.kept, strict=True):
        means = []
        for unit in group.units:
            layers = [cycle.scores[n].mean[list(unit[n])].tolist() for n in group.convolutions if n in cycle.scores]
            means.append(statistics.fmean(statistics.fmean(values) for values in layers))
        order = sorted(range(len(means)), key=lambda i: (round(means[i], 9), i))
        survivors = sorted(order[len(means) - kept :])
        for n in group.convolutions:
            of_group = {index for unit in group.units for index in unit[n]}
            assert sorted(set(result.kept[n]) & of_group) == sorted(i for u in survivors for i in group.units[u][n])
    for layer in result.plan.layers:
        convolution = model.get_submodule(layer.name)
        assert convolution.out_channels == layer.after == len(result.kept.get(layer.name, range(layer.before)))
        assert (layer.reason is None) == (layer.after < layer.before)
    if residual == "inner":
        assert not any(group.residual for group in result.plan.groups)

    # What is left has every bit, and computes what the whole network does with dead filters.
    for n, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            rows = original.get_submodule(n).weight[list(result.kept.get(n, range(module.out_channels)))]
            some, whole_some = (w[:3].transpose(0, 1).flatten(1) for w in (module.weight, rows))  # random: no two equal
            columns = (some[:, None] == whole_some).all(-1).nonzero()[:, 1]
            assert torch.equal(module.weight, rows[:, columns])
    dead = original.eval()
    with torch.no_grad():
        for n, width in result.original.items():
            layer, indices = dead.get_submodule(n), sorted(set(range(width)) - set(result.kept[n]))
            layer.weight[indices] = 0
            if layer.bias is not None:
                layer.bias[indices] = 0
            if n in ("stage2.0.conv2", "stage3.0.conv2"):  # what a shortcut adds to these filters
                dead.get_submodule(n.replace("conv2", "shortcut")).source[indices] = -1
        expected = dead(inputs)  # its batch norms are new: they turn zeros into zeros
        assert torch.allclose(model(inputs), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))

    # It has its outputs, and it trains.
    assert model(inputs).shape == original(inputs).shape
    model.train()(inputs).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_a_fresh_process_gives_the_same_outputs(random_scores, saved):
    """Of every network of the matrix, loaded without pickle, and of what was exported."""
    for name, shape, target, residual in MATRIX:
        if not (saved / f"{name}-{residual}").exists():  # its own test was not run
            prune_and_save(name, shape, target, residual, saved)
    exported = EXPORTED if find_spec("onnxruntime") else []  # the extra [export] needs a newer PyTorch than the rest
    for name in exported:
        network = load_pruned(saved / name, partial(make, name.split("-")[0]))
        inputs = torch.load(saved / name / "expected.pt", weights_only=True)["inputs"]
        export_onnx(network, inputs, saved / name / "network.onnx")
        export_pt2(network, inputs, saved / name / "network.pt2")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_plan; test_plan.check_saved()"
    arguments = [sys.executable, "-c", code, str(saved), str(torch.get_num_threads())]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"loaded": ALL, "exported": exported}


def check_saved():
    """What the fresh process runs."""
    assert not {"onnx", "onnxruntime", "onnxscript"} & set(sys.modules)
    saved, threads = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    unpickled = []
    sys.addaudithook(lambda event, _: unpickled.append(event) if event == "pickle.find_class" else None)
    checked = {"loaded": [], "exported": []}
    for folder in sorted(saved.iterdir()):
        expected = torch.load(folder / "expected.pt", weights_only=True)
        inputs, outputs = expected["inputs"], expected["outputs"]
        before, name = len(unpickled), folder.name.split("-")[0]
        model = load_pruned(folder, None if name in MODELS else partial(make, name))
        assert len(unpickled) == before
        state = torch.load(folder / "model.pt", weights_only=True)
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
        with torch.no_grad():
            assert torch.equal(model(inputs), outputs)
        checked["loaded"].append(folder.name)
        if (folder / "network.onnx").exists():
            import onnxruntime

            session = onnxruntime.InferenceSession(folder / "network.onnx", providers=["CPUExecutionProvider"])
            (got,) = session.run(["output"], {"input": inputs.numpy()})
            assert torch.allclose(torch.from_numpy(got), outputs, rtol=0, atol=1e-5 * float(outputs.abs().max()))
            program = torch.export.load(folder / "network.pt2").module()
            assert torch.equal(program(inputs), outputs)
            checked["exported"].append(folder.name)
    print(json.dumps(checked))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    share=st.floats(0.05, 0.95),
    quantity=st.sampled_from(["macs", "params"]),
    round_to=st.integers(1, 6),
    min_channels=st.integers(1, 9),
    max_ratio=st.floats(0.1, 1),
    residual=st.sampled_from(["inner", "stream"]),
)
def test_the_rules_hold_whatever_is_asked(share, quantity, round_to, min_channels, max_ratio, residual):
    rules = {"round_to": round_to, "min_channels": min_channels, "max_ratio": max_ratio, "residual": residual}
    model = make("branches")
    try:
        made = plan(model, IMAGE, target={quantity: share}, **rules)
    except ValueError as error:
        assert re.search(r"is out of reach: 0\.\d+ of them is the least|nothing to prune: ", str(error))
        return
    attribute = {"macs": "macs", "params": "parameters"}[quantity]
    assert getattr(made.after, attribute) <= share * getattr(made.before, attribute)
    for layer in made.layers:
        assert layer.got <= max_ratio + 1e-9
        if layer.reason is None:
            assert layer.after % round_to == 0 and layer.after >= min_channels
        else:
            assert layer.after == layer.before
    assert count(model, IMAGE) == made.before


@settings(max_examples=24, deadline=None, derandomize=True)
@given(
    mode=st.sampled_from(["limits", "macs", "params", "latency_ms"]),
    share=st.floats(0.5, 0.95),
    round_to=st.integers(1, 4),
    min_channels=st.integers(1, 6),
    max_ratio=st.floats(0.4, 1),
)
def test_the_rules_hold_in_every_cycle_of_every_mode(mode, share, round_to, min_channels, max_ratio):
    rules = {"round_to": round_to, "min_channels": min_channels, "max_ratio": max_ratio}
    model, limits = make("branches"), {}
    if mode == "limits":
        limits = {"stem": max(1, int(16 * share)), "side": max(1, int(9 * share))}
        goal = {"limits": limits, "shares": {"stem": 0.2, "side": 0.3}}
    else:
        goal = {"target": {mode: share * 4.3 if mode == "latency_ms" else share}, "cycles": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost_module, "measure_latency", clock_of_macs)
        try:
            result = prune(model, [(IMAGE, torch.zeros(1).long())], IMAGE, criterion=L1Norm(), **goal, **rules)
        except ValueError as error:
            assert re.search("out of reach|nothing to prune|leave something to prune|must be met within", str(error))
            return
    for cycle in result.cycles:
        for name, left in cycle.filters.items():
            before = result.original[name]
            assert left == before or (left % round_to == 0 and left >= max(min_channels, limits.get(name, 1)))
            assert 1 - left / before <= max_ratio + 1e-9
    assert len(model.head.weight) == 5


def clock_of_macs(model, inputs, **_):
    """A latency that counts, so that the search is tested and not the machine: 4.3 ms for `Branches`."""
    return Latency(count(model, inputs).macs / 1e6, 1, 1, 1, "cpu")


def test_a_plan_does_not_touch_the_model_and_drives_the_pruning(random_scores):
    model = make("resnet20")
    model.train()
    model.conv1.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    made = plan(model, IMAGE, target={"macs": 0.5})
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and model.bn1.training and not model.conv1.weight.requires_grad
    assert model.conv1.out_channels == 16 and not model.conv1._forward_hooks
    images = torch.randn(4, 3, 32, 32)
    result = prune(model, [(images, torch.arange(4))], IMAGE, plan=made)
    assert result.plan is made and count(model, IMAGE) == made.after
    with pytest.raises(ValueError, match=r"plan must be made for this network: 'stage1\.0\.conv1' must have 16"):
        prune(model, [(images, torch.arange(4))], IMAGE, plan=made)


def test_every_layer_that_stays_whole_has_its_reason():
    model = make("branches")
    model.unused = nn.Conv2d(3, 3, 3)
    made = plan(model, IMAGE, target={"macs": 0.6}, exclude=["side"], round_to=4)
    assert {layer.name: layer.reason for layer in made.layers} == {
        "stem": None,
        "grouped": None,
        "side": "exclude names it",
        "mix": 'its output enters a sum of branches, which residual="stream" prunes',
        "last": 'its output enters a sum of branches, which residual="stream" prunes',
        "unused": "it takes no part in a forward pass",
    }
    made = plan(model, IMAGE, target={"macs": 0.97}, min_channels=9)
    reasons = {layer.name: layer.reason for layer in made.layers}
    assert reasons["side"] == "round_to, min_channels, max_ratio or limits allow no width below its 9 filters"
    assert reasons["stem"] is None and reasons["grouped"] == "the budget asks for less than one step of it"


def test_norms_of_groups_parameters_and_transposed_convolutions_follow():
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.slope = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.PReLU(16)
            self.scale = nn.Parameter(torch.randn(16, 1, 1))
            self.second, self.up, self.last = nn.Conv2d(16, 8, 3), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 8, 1)
            self.head = nn.Linear(8 * 4, 3)

        def forward(self, x):
            x = self.up(self.second(self.slope(self.norm(self.first(x))) * self.scale).relu())
            return self.head(nn.functional.adaptive_avg_pool2d(self.last(x).relu(), 2).flatten(1))

    model = Layers()
    images = torch.randn(6, 3, 12, 12)
    result = prune(model, [(images, torch.arange(6) % 3)], images[:1], target={"macs": 0.5}, alpha=2.0)
    assert count(model, images) == result.plan.after  # parameters of all these layers among them
    width = len(result.kept["first"])
    assert width % 4 == 0 and model.norm.num_channels == model.slope.num_parameters == len(model.scale) == width < 16
    assert model(images).shape == (6, 3)


def test_a_layer_that_runs_twice_gives_the_outputs_or_goes_all_at_once_stays_whole():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.one, self.fan = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1, groups=4)
            self.last = nn.Conv2d(8, 5, 1)

        def forward(self, x):
            x = self.twice(self.twice(self.first(x)).relu()).relu()
            return self.last(self.fan(self.one(x))).mean((2, 3))

    made = planning_module.find_groups(Odd(), IMAGE)[0]
    assert {g.convolutions: g.problem for g in made} == {
        ("first", "twice"): None,  # the second run of `twice` reads what the first one wrote
        ("one",): "its channels can only go all at once",  # each of the four groups reads one channel
        ("fan",): None,
        ("last",): "its channels are outputs of the network",
    }
    with pytest.raises(ValueError, match=r"target macs=0\.1 is out of reach: .* outputs of the network"):
        plan(Odd(), IMAGE, target={"macs": 0.1}, exclude=["first"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({}, "either target or limits must be given, got none"),
        ({"target": {"macs": 1.0}}, "target macs, the share that is left, must be above 0 and below 1, got 1.0"),
        ({"target": {"flops": 0.5}}, "target must name one of macs, params, latency_ms, got {'flops': 0.5}"),
        ({"target": {"macs": 0.5, "params": 0.5}}, "target must name one of macs, params, latency_ms, got"),
        ({"target": {"macs": 0.5, "device": "cpu"}}, "target must name one of macs, params, latency_ms, got"),
        ({"target": {"macs": "0.5"}}, "target macs, the share that is left, must be above 0 and below 1, got '0.5'"),
        ({"target": 0.5}, "target must be a mapping such as {'macs': 0.4}, got 0.5"),
        ({"target": {"latency_ms": 0}}, "target latency_ms must be above 0, got 0"),
        ({"target": {"latency_ms": 5, "device": "tpu"}}, "device must be cpu or cuda, got 'tpu'"),
        ({"target": {"macs": 0.5}, "residual": "both"}, "residual must be one of inner, stream, got 'both'"),
        ({"target": {"macs": 0.5}, "round_to": 0}, "round_to must be an integer of at least 1, got 0"),
        ({"target": {"macs": 0.5}, "round_to": True}, "round_to must be an integer of at least 1, got True"),
        ({"target": {"macs": 0.5}, "min_channels": 1.5}, "min_channels must be an integer of at least 1, got 1.5"),
        ({"target": {"macs": 0.5}, "max_ratio": 0.0}, "max_ratio must be above 0 and at most 1, got 0.0"),
        ({"target": {"macs": 0.5}, "exclude": ["conv3"]}, "exclude must name convolutions of the model, got 'conv3'"),
        ({"target": {"macs": 0.4}, "max_ratio": 0.5}, "target macs=0.4 is out of reach: 0.4327 of them is the least"),
        ({"target": {"macs": 0.5}, "round_to": 64}, "there is nothing to prune: round_to, min_channels, max_ratio or"),
        ({"target": {"macs": 0.5}, "exclude": ["conv1", "conv2"]}, "nothing to prune: exclude names it (2 layers)"),
        ({"target": {"latency_ms": 1e9}}, "target latency_ms=1e+09 must be below the "),
        ({"target": {"latency_ms": 1e-9}}, "target latency_ms=1e-09 is out of reach: "),
    ),
)
def test_a_plan_that_cannot_be_made_says_why(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plan(lenet5(), torch.zeros(1, 1, 28, 28), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        (lambda net: setattr(net.norm, "bias", net.stem.bias), "'norm.bias', which is 'stem.bias' as well"),
        (lambda net: nn.utils.parametrizations.weight_norm(net.mix), "got layer 'mix', whose weight is computed"),
        (lambda net: masks.random_unstructured(net.mix, "weight", 0.5), "got layer 'mix', whose weight is"),
        (lambda net: setattr(net, "stem", nn.Conv2d(4, 16, 3)), "a tensor of shape (1, 3, 32, 32), got RuntimeError: "),
        (
            lambda net: setattr(net, "last", torch.compile(net.last, backend="eager")),
            "model must be what torch.compile was given",
        ),
    ),
)
def test_a_network_that_cannot_be_cut_is_refused_by_name(change, message):
    model = make("branches")
    change(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        plan(model, IMAGE, target={"macs": 0.5})


def test_example_inputs_must_be_a_tensor():
    with pytest.raises(ValueError, match=re.escape("example_inputs must be a tensor of shape (N, ...), got tuple")):
        plan(lenet5(), (torch.zeros(1, 1, 28, 28),), target={"macs": 0.5})


def test_limits_of_a_group_are_one_limit():
    model = make("resnet20")
    with pytest.raises(ValueError, match=r"'stage1\.0\.conv2': its output enters a sum of branches"):
        plan(model, IMAGE, limits={"stage1.0.conv2": 8})
    with pytest.raises(ValueError, match=r"limits must be equal for .*, got conv1=8 and stage1\.0\.conv2=9"):
        plan(model, IMAGE, limits={"conv1": 8, "stage1.0.conv2": 9}, residual="stream")
    made = plan(model, IMAGE, limits={"stage1.1.conv2": 7}, residual="stream", round_to=4)
    widths = {layer.name: layer.after for layer in made.layers if layer.reason is None}
    assert widths == dict.fromkeys(["conv1", "stage1.0.conv2", "stage1.1.conv2", "stage1.2.conv2"], 8)


def test_a_latency_is_searched_by_measuring(monkeypatch):
    monkeypatch.setattr(cost_module, "measure_latency", clock_of_macs)
    made = plan(make("resnet20"), IMAGE, target={"latency_ms": 20.0, "device": "cpu"}, round_to=2)
    before, after = made.latency_ms
    assert before == made.before.macs / 1e6 and 18 <= after <= 22
    assert after == pytest.approx(made.after.macs / 1e6, rel=1e-12)
    monkeypatch.setattr(cost_module, "measure_latency", lambda model, inputs, **runs: clock_of_macs(model, inputs * 0))
    with pytest.raises(ValueError, match=r"target latency_ms=8 is out of reach: 10\.\d+ ms on cpu is the least"):
        plan(make("resnet20"), IMAGE, target={"latency_ms": 8.0}, max_ratio=0.75)
