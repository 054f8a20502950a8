"""A pruned network on disk: whatever is wrong with its folder is named, and nothing in it is run."""
# SPDX-License-Identifier: MIT

import copy
import hashlib
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save
from torch import nn

import hrel_ext
from hrel_ext.pruning import L2Norm, load_pruned, prune, save_pruned

INPUTS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def network():
    """Two convolutions, of 6 and 8 filters."""
    layers = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    return nn.Sequential(*layers)


def saved_as(folder, dtype):
    torch.manual_seed(2)
    model = network().to(dtype)
    inputs = INPUTS.to(dtype)
    batches = [(inputs, torch.arange(2))]
    limits = {"0": 4, "3": 7}
    result = prune(model, batches, inputs, limits=limits, shares={"0": 0.2, "3": 0.1}, criterion=L2Norm())
    save_pruned(folder, model.eval(), result, input_shape=(3, 8, 8))
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder as it should be, and its network."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, saved_as(folder, torch.float32)


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it to be damaged."""
    return shutil.copytree(whole[0], tmp_path / "saved")


def edit(folder, change):
    """Change the plan in place; the hash of the weights is made to fit what is there."""
    plan = json.loads((folder / "plan.json").read_text())
    plan["weights"]["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    change(plan)
    (folder / "plan.json").write_text(json.dumps(plan))


def test_a_network_of_ones_own_keeps_every_bit(whole):
    folder, model = whole
    torch.manual_seed(9)
    assert hrel_ext.load_pruned is load_pruned
    again = hrel_ext.load_pruned(folder, network)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in again.parameters()) and not again.training
    assert torch.equal(again(INPUTS), model(INPUTS))
    again.train()(INPUTS).sum().backward()


def test_a_module_with_two_names_is_saved_and_loaded(tmp_path):
    def make():
        twice = nn.Conv2d(6, 6, 1)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), twice, nn.ReLU(), twice)

    model = make()
    inputs = torch.randn(4, 3, 9, 9)
    batches = [(inputs, torch.arange(4) % 2)]
    result = prune(model, batches, inputs, target={"macs": 0.7}, criterion=L2Norm(), checkpoint=tmp_path / "states")
    assert result.kept.keys() == {"0"}
    assert [layer.reason is not None for layer in result.plan.layers] == [False, True, True]
    save_pruned(tmp_path, model, result, input_shape=(3, 9, 9))
    loaded = load_pruned(tmp_path, make)
    assert loaded[3] is loaded[5] and torch.equal(loaded(inputs), model.eval()(inputs))


def test_weights_of_another_dtype_stay_what_they_are(tmp_path):
    model = saved_as(tmp_path, torch.float64)
    again = load_pruned(tmp_path, network)  # which makes float32
    assert again[0].weight.dtype == torch.float64 and torch.equal(again[0].weight, model[0].weight)
    assert torch.equal(again(INPUTS.double()), model(INPUTS.double()))


@pytest.mark.parametrize(
    ("change", "message"),
    (
        (lambda p: p.pop("schema_version"), "schema_version of {plan} must be 2, got none"),
        (lambda p: p.update(schema_version=True), "schema_version of {plan} must be 2, got True"),
        (lambda p: p.update(schema_version=1), "schema_version of {plan} must be 2, got 1"),
        (lambda p: p.update(model=["lenet5"]), "model of {plan} must be a name or null, got ['lenet5']"),
        (lambda p: p.update(num_classes="ten"), "num_classes of {plan} must be an integer above 0 or null, got 'ten'"),
        (lambda p: p.pop("input_shape"), "input_shape of {plan} must be a list of integers above 0, got none"),
        (lambda p: p.update(input_shape=[3, 8, -8]), "must be a list of integers above 0, got [3, 8, -8]"),
        (lambda p: p.update(input_shape=[3, 8, "8"]), "must be a list of integers above 0, got [3, 8, '8']"),
        (lambda p: p.update(input_shape=[]), "must be a list of integers above 0, got []"),
        (lambda p: p.update(input_shape=[5, 8, 8]), "{plan} must fit the network, got model must be a network that"),
        (lambda p: p.update(input_shape=[1 << 60]), "input_shape of {plan} must be of at most 16777216 values, got ["),
        (lambda p: p.update(num_classes=1 << 60), "num_classes of {plan} must have weights in the "),
        (lambda p: p.update(layers=[]), "layers of {plan} must be an object, got []"),
        (lambda p: p["layers"].update({"0": 4}), "0 of {plan} must be an object, got 4"),
        (
            lambda p: p["layers"]["0"].pop("original"),
            "original of layers['0'] of {plan} must be an integer above 0, got",
        ),
        (lambda p: p["layers"]["0"].update(original=6.0), "layers['0'] of {plan} must be an integer above 0, got 6.0"),
        (
            lambda p: p["layers"]["0"].update(original=9),
            "original of layers['0'] of {plan} must be the 6 filters of the network, got 9",
        ),
        (
            lambda p: p["layers"]["3"].update(kept=[0, 8]),
            "kept of layers['3'] of {plan} must be ascending indices of some of its 8 filters, got [0, 8]",
        ),
        (lambda p: p["layers"]["3"].update(kept=[-1, 0]), "ascending indices of some of its 8 filters, got [-1, 0]"),
        (lambda p: p["layers"]["3"].update(kept=[2, 2]), "ascending indices of some of its 8 filters, got [2, 2]"),
        (lambda p: p["layers"]["3"].update(kept=[True]), "ascending indices of some of its 8 filters, got [True]"),
        (lambda p: p["layers"]["3"].update(kept=[]), "ascending indices of some of its 8 filters, got []"),
        (
            lambda p: p["layers"]["3"].update(kept={"0": 1}),
            "ascending indices of some of its 8 filters, got {{'0': 1}}",
        ),
        (
            lambda p: p["layers"].update({"5": {"original": 4, "kept": [0]}}),
            "layers['5'] of {plan} must be a convolution of the network, got none of this name",
        ),
        (lambda p: p.pop("weights"), "weights of {plan} must be an object, got none"),
        (lambda p: p["weights"].pop("sha256"), "sha256 of weights of {plan} must be a string, got none"),
        *(
            (
                lambda p, name=name: p["weights"].update(file=name),
                f"file of weights of {{plan}} must be the name of a file in this folder, got {name!r}",
            )
            for name in ("../model.safetensors", "/etc/hostname", "a/b", "a\\b", "..", ".", "", "C:b", "a\0", "a\n")
        ),
        (
            lambda p: p["layers"]["0"].update(kept=[0]),
            "{weights} must fit the network and the plan, got Error(s) in loading state_dict for Sequential: size "
            "mismatch for 0.weight",
        ),
    ),
)
def test_a_plan_that_breaks_a_rule_is_refused(folder, change, message):
    edit(folder, change)
    message = message.format(plan=folder / "plan.json", weights=folder / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_pruned(folder, network)


@pytest.mark.parametrize(
    ("damage", "message"),
    (
        (lambda text: text[:-20], "{plan} must hold JSON, got "),
        (lambda text: b"\xff\xfe" + text, "{plan} must hold JSON, got "),
        (lambda text: b"[" * 100_000, "{plan} must hold JSON, got "),
        (lambda text: b"", "{plan} must hold JSON, got "),
        (lambda text: b"[1, 2]", "plan of {plan} must be an object, got [1, 2]"),
    ),
)
def test_a_plan_that_is_no_plan_is_refused(folder, damage, message):
    file = folder / "plan.json"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(message.format(plan=file))):
        load_pruned(folder, network)


@pytest.mark.parametrize("size", (0, 4, 100, -1))
def test_truncated_weights_are_refused_even_where_the_plan_agrees(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"sha256 of {file} must be the [0-9a-f]{{64}} of its plan, got "):
        load_pruned(folder, network)
    edit(folder, lambda plan: None)
    with pytest.raises(ValueError, match=f"{file} must hold safetensors, got "):
        load_pruned(folder, network)


def test_weights_of_another_network_are_refused(folder, whole):
    file = folder / "model.safetensors"
    state = copy.deepcopy(whole[1].state_dict())
    state["more"] = state.pop("5.bias")
    file.write_bytes(save(state))
    edit(folder, lambda plan: None)
    with pytest.raises(
        ValueError, match=re.escape(f"{file} must fit the network and the plan, got Error(s) in loading")
    ):
        load_pruned(folder, network)


def test_a_missing_file_and_a_function_that_makes_no_network_are_named(folder):
    with pytest.raises(ValueError, match=r"model_fn must return a torch\.nn\.Module, got 3"):
        load_pruned(folder, lambda: 3)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_pruned(folder, network)
    with pytest.raises(FileNotFoundError, match=r"nowhere.plan\.json"):
        load_pruned(folder / "nowhere", network)
