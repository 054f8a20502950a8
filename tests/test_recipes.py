"""The experiments: they fit their networks, cost what was worked out, and pass the counts of HRel's published code."""
# SPDX-License-Identifier: MIT

import dataclasses
import json

import pytest
import torch

from hrel_ext.cli import recipes_command
from hrel_ext.pruning import check_schedule, plan, schedule
from hrel_ext.recipes import EXPERIMENTS, RECIPES, Recipe
from hrel_ext.zoo.data import DATASETS, SHAPES
from hrel_ext.zoo.models import MODELS

RESIDUAL = tuple(name for name in EXPERIMENTS if name.startswith("resnet"))


def counts(name, **limits):
    """Layer to its filters after each cycle, with the limits changed."""
    recipe = EXPERIMENTS[name]["paper"]
    network = MODELS[recipe.model]()
    widths = {layer: network.get_submodule(layer).out_channels for layer in recipe.limits}
    steps = schedule(widths, {**recipe.limits, **limits}, recipe.shares)
    return {layer: [step[layer] for step in steps] for layer in recipe.limits}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_recipe_fits_its_network_and_its_name(name):
    schedules = EXPERIMENTS[name]
    assert list(schedules) == (["short"] if name == "lenet5-digits" else ["paper", "short"])
    network = MODELS[schedules["short"].model]()
    for recipe in schedules.values():
        assert name == f"{recipe.model}-{recipe.data}" + ("-stream" if recipe.residual == "stream" else "")
        assert recipe.data in DATASETS and recipe.source.endswith(".")
        check_schedule(network, recipe.limits, recipe.shares, recipe.scored)
        for stage in (recipe.baseline, recipe.cycle, recipe.final):
            assert stage.milestones is None or all(0 < milestone < stage.epochs for milestone in stage.milestones)
    if schedules["short"].residual == "inner":
        assert RECIPES[schedules["short"].model, schedules["short"].data] is schedules["short"]


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "paper" in EXPERIMENTS[name]])
def test_a_short_schedule_names_what_departs_from_the_paper(name):
    words = {
        "weights": "random weights",
        "scored_batches": "score",
        "batch_size": "mini-batches of",
        "margin": "shifted",
        "weight_decay": "weights decay",
        "label_smoothing": "labels",
        "distillation": "teacher",
        "precision": "mixed precision",
    }
    paper, short = (EXPERIMENTS[name][schedule] for schedule in ("paper", "short"))
    for field in {field.name for field in dataclasses.fields(Recipe)} - {"baseline", "cycle", "final", "source"}:
        if getattr(paper, field) != getattr(short, field) and field != "channels_last":  # a matter of speed alone
            assert words[field] in short.source, field


@pytest.mark.parametrize(
    ("name", "conv_macs", "parameters"),  # shares that go, of convolutions and of the whole network
    (
        ("lenet5-mnist", 0.9525, 0.5607),
        ("vgg16-cifar10", 0.8488, 0.9497),
        ("resnet56-cifar10", 0.5188, 0.5278),
        ("resnet56-cifar10-stream", 0.7689, 0.7772),
        ("resnet110-cifar10", 0.5198, 0.5282),
        ("resnet110-cifar10-stream", 0.7695, 0.7774),
        ("resnet50-imagefolder", 0.5670, 0.5496),
    ),
)
def test_a_recipe_costs_what_was_worked_out(name, conv_macs, parameters):
    recipe = EXPERIMENTS[name]["paper"]
    example = torch.zeros(1, *SHAPES[recipe.data])
    made = plan(MODELS[recipe.model](), example, limits=recipe.limits, residual=recipe.residual)
    assert 1 - made.after.conv_macs / made.before.conv_macs == pytest.approx(conv_macs, abs=6e-5)
    assert 1 - made.after.parameters / made.before.parameters == pytest.approx(parameters, abs=6e-5)


def test_vgg16_costs_what_the_abstract_says_with_biases_counted():
    """-84.85 % FLOPs and -94.98 % parameters there; a bias is one addition for a position, batch norm is left out."""
    recipe = EXPERIMENTS["vgg16-cifar10"]["paper"]
    made = plan(MODELS["vgg16"](), torch.zeros(1, 3, 32, 32), limits=recipe.limits)

    def costs(macs, filters, fully_connected):
        inputs = (3, *filters[:-1])
        convolutions = sum(of_layer + of_layer / (9 * n) for of_layer, n in zip(macs, inputs, strict=True))
        parameters = sum(9 * n * f + f for n, f in zip(inputs, filters, strict=True))
        return convolutions + fully_connected, parameters + fully_connected

    layers = made.layers
    before = costs([layer.macs_before for layer in layers], [layer.before for layer in layers], 513 * 512 + 513 * 10)
    after = costs([layer.macs_after for layer in layers], [layer.after for layer in layers], 57 * 512 + 513 * 10)
    assert [round(cost / 1e6, 2) for cost in (*before, *after)] == [313.74, 14.98, 47.51, 0.75]
    assert [100 * (1 - left / cost) for cost, left in zip(before, after, strict=True)] == pytest.approx(
        [84.857, 94.983], abs=6e-4
    )


def test_lenet5_to_two_and_three_filters_costs_what_the_abstract_says():
    made = plan(MODELS["lenet5"](), torch.zeros(1, 1, 28, 28), limits={"conv1": 2, "conv2": 3})
    assert (made.before.conv_macs, made.after.conv_macs) == (1_888_000, 38_400)  # -97.97 %
    assert 1 - made.after.macs / made.before.macs == pytest.approx(0.8357, abs=6e-5)
    assert 1 - made.after.parameters / made.before.parameters == pytest.approx(0.5849, abs=6e-5)


def test_lenet5_passes_the_counts_of_the_code():
    assert counts("lenet5-mnist", conv1=2, conv2=3) == {
        "conv1": [20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2],
        "conv2": [50, 43, 37, 32, 28, 24, 21, 18, 15, 13, 11, 9, 7, 6, 5, 4, 3, 3, 3],
    }


def test_vgg16_passes_the_counts_of_the_code():
    of_256 = [256, 243, 230, 218, 207, 196, 186, 176, 167, 158, 150, 142, 134, 127, 120, 113, 107, 101, 95]
    of_512 = [
        512,
        460,
        413,
        371,
        333,
        299,
        269,
        242,
        217,
        195,
        175,
        157,
        141,
        126,
        113,
        101,
        90,
        80,
        71,
        63,
        56,
        50,
        44,
    ]
    of_128 = [128, 122, 117, 112, 107, 102, 97, 93, 89, 85, 81, 77, 73, 70, 67, 64]
    of_64 = [64, 62, 60, 58, 56, 54, 52, 50, *range(48, 19, -1)]
    ends = {1: 20, 2: 48, 3: 64, 4: 64, 5: 95, 6: 107, 7: 107, 8: 175, 9: 71, 10: 71, 11: 44, 12: 44, 13: 56}
    for layer, passed in counts("vgg16-cifar10").items():
        number = int(layer.removeprefix("conv"))
        expected = of_64 if number < 3 else of_128 if number < 5 else of_256 if number < 8 else of_512
        expected = expected[: expected.index(ends[number]) + 1]
        assert passed == expected + [ends[number]] * (37 - len(expected))  # 36 cycles and the start


@pytest.mark.parametrize(
    ("name", "baseline", "retraining", "weight_decay", "others"),
    (  # epochs, learning rate, epochs after which it is divided by 10, of HRel's published code
        ("lenet5-mnist", (40, 0.1, (20, 30)), (40, 0.1, (10, 20)), 5e-4, {"margin": 0, "mirror": False}),
        ("vgg16-cifar10", (300, 0.1, (80, 140, 230)), (90, 0.01, (40, 70)), 5e-4, {"where": "relu"}),
        ("resnet56-cifar10", (182, 0.1, (91, 136)), (100, 0.01, (20, 70)), 2e-4, {"nesterov": True}),
        ("resnet56-cifar10-stream", (182, 0.1, (91, 136)), (100, 0.01, (20, 70)), 2e-4, {"nesterov": True}),
        ("resnet110-cifar10", (182, 0.1, (91, 136)), (100, 0.01, (20, 70)), 2e-4, {"nesterov": True}),
        ("resnet110-cifar10-stream", (182, 0.1, (91, 136)), (100, 0.01, (20, 70)), 2e-4, {"nesterov": True}),
        (
            "resnet50-imagefolder",
            (3, 1e-4, ()),
            (33, 1e-3, (10, 25)),
            2e-4,
            {
                "margin": 28,
                "batch_size": 80,
                "label_smoothing": 0.1,
                "weights": "IMAGENET1K_V1",
                "scored_batches": 3847,
            },
        ),
    ),
)
def test_a_paper_schedule_trains_as_the_code_does(name, baseline, retraining, weight_decay, others):
    recipe = EXPERIMENTS[name]["paper"]
    of_the_code = {
        "where": "conv",
        "margin": 4,
        "mirror": True,
        "nesterov": False,
        "batch_size": 100,
        "label_smoothing": 0.0,
    }
    of_the_code |= {"weights": None, "scored_batches": None, "momentum": 0.9, "sigma": "layer", "alpha": 1.0}
    of_the_code |= {"criterion": "hrel", "precision": "no", "distillation": 0.0, "weight_decay": weight_decay} | others
    assert {field: getattr(recipe, field) for field in of_the_code} == of_the_code
    stages = [(stage.epochs, stage.learning_rate, stage.milestones) for stage in (recipe.baseline, recipe.cycle)]
    assert stages == [baseline, retraining]
    idle = 0 if name == "resnet50-imagefolder" else retraining[0]  # all others retrain once more at the end
    assert recipe.final == dataclasses.replace(recipe.cycle, epochs=idle, milestones=recipe.final.milestones)
    assert recipe.final.milestones == (retraining[2] if idle else ())


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_networks_come_close_to_the_counts_of_the_code(name):
    """Its numbers of filters for each cycle are not those of one share; see the recipes."""
    of_the_code = {
        16: [16, 15, 14, 13, 12, 11, 10, 9, 8, 8],
        32: [32, 30, 28, 26, 24, 22, 20, 18, 16, 15],
        64: [64, 60, 56, 52, 48, 44, 40, 36, 32, 30],
    }
    if name == "resnet50-imagefolder":
        of_the_code = {
            64: [64, 59, 55, 51, 47, 44, 41, 38, 35, 33],
            128: [128, 118, 109, 101, 93, 86, 80, 74, 69, 64],
            256: [256, 236, 218, 201, 185, 171, 158, 146, 135, 125],
            512: [512, 466, 425, 387, 353, 322, 294, 268, 244, 223],
        }
    apart = {}
    for passed in counts(name).values():
        expected = of_the_code[passed[0]]
        assert passed[-1] == expected[-1] and len(passed) == len(expected) == 10
        apart[passed[0]] = max(abs(a - b) for a, b in zip(passed, expected, strict=True))
    if name == "resnet50-imagefolder":
        assert apart == {64: 0, 128: 2, 256: 0, 512: 1}
    else:
        assert apart == {16: 0, 32: 0, 64: 2}


def test_recipes_are_listed_with_their_epochs_and_what_was_measured(tmp_path, capsys):
    recipe = dataclasses.asdict(EXPERIMENTS["vgg16-cifar10"]["short"])
    for seed, seconds in enumerate((600.0, 660.0, 900.0)):
        report = {"recipe": recipe, "seed": seed, "device": "cuda", "seconds": {"total": seconds}}
        (tmp_path / f"{seed}.json").write_text(json.dumps(report))
    (tmp_path / "other.json").write_text(json.dumps([{"recipe": None}]))
    recipe = dataclasses.asdict(EXPERIMENTS["lenet5-mnist"]["short"])
    runs = [{"recipe": recipe, "seed": seed, "device": "cpu", "seconds": {"total": 1200.0}} for seed in range(2)]
    (tmp_path / "runs.json").write_text(json.dumps({"runs": runs}))
    recipes_command(results=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    marked = [line for line in lines if line.startswith("weights: ")]
    assert marked == ["weights: resnet50-imagefolder paper starts from IMAGENET1K_V1, see --weights"]
    rows = {tuple(line.split()[:2]): line.split() for line in lines}
    assert rows["vgg16-cifar10", "short"][-6:] == ["196", "36", "11.0", "min", "on", "cuda"]
    assert rows["vgg16-cifar10", "paper"][-4:] == ["3630", "36", "not", "measured"]
    assert rows["lenet5-mnist", "short"][-4:] == ["20.0", "min", "on", "cpu"]
    assert rows["lenet5-mnist", "paper"] == ["lenet5-mnist", "paper", "4", "5", "720", "16", "not", "measured"]
    assert rows["resnet56-cifar10-stream", "paper"][-4:] == ["1182", "9", "not", "measured"]
    assert rows["resnet50-imagefolder", "paper"][-4:] == ["300", "9", "not", "measured"]
    listed = [name for name, schedules in EXPERIMENTS.items() for _ in schedules]
    assert [name for name in (line.split()[0] for line in lines) if name in EXPERIMENTS] == listed
