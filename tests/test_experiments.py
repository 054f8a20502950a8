"""The short recipes for CIFAR-10 and for folders of images, on few real images: they start, train, prune, and go on."""
# SPDX-License-Identifier: MIT

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from hrel_ext import experiment
from hrel_ext.pruning import load_pruned, schedule
from hrel_ext.recipes import EXPERIMENTS, Stage
from hrel_ext.zoo import data
from hrel_ext.zoo.models import MODELS

PER_CLASS = 6  # images in training and validation; 2 in the test split
BATCH = 10


class Interrupted(Exception):
    pass


@pytest.fixture(autouse=True)
def a_latency_that_takes_no_time(monkeypatch):
    monkeypatch.setattr(experiment, "LATENCY_BATCH", 1)


@pytest.fixture(scope="module")
def some_of_cifar10(tmp_path_factory):
    """A few images of each class, through the loader of the whole set."""
    folder = Path(os.environ.get("HREL_DATA_DIR", "."))
    if (folder / "cifar-10-batches-py").is_dir():
        splits = data.cifar10(folder)
        counts = {"train": 5 * BATCH, "validation": BATCH, "test": 2 * BATCH}
        return data.Splits(*(getattr(splits, name).take(torch.arange(count)) for name, count in counts.items()))
    if not (folder / "cifar10").is_dir():
        pytest.skip("needs CIFAR-10: HREL_DATA_DIR is not a folder that holds cifar-10-batches-py or cifar10")
    few = tmp_path_factory.mktemp("few")
    for part, count in (("train", PER_CLASS), ("test", 2)):
        for of_class in (folder / "cifar10" / part).iterdir():
            (few / "cifar10" / part / of_class.name).mkdir(parents=True)
            for image in sorted(of_class.iterdir())[:count]:
                (few / "cifar10" / part / of_class.name / image.name).symlink_to(image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "VALIDATION", BATCH)
        return data.cifar10(few)


def of_one_cycle(name, **changes):
    """A short recipe with an epoch in each stage, as far as its first cycle goes."""
    recipe = EXPERIMENTS[name]["short"]
    network = MODELS[recipe.model]()
    widths = {layer: network.get_submodule(layer).out_channels for layer in recipe.limits}
    after_one = schedule(widths, recipe.limits, recipe.shares)[1]
    stages = {stage: dataclasses.replace(getattr(recipe, stage), epochs=1) for stage in ("baseline", "cycle", "final")}
    return dataclasses.replace(recipe, limits=after_one, batch_size=BATCH, scored_batches=2, **stages, **changes)


def interrupted_and_resumed(recipe, splits, output):
    """The report of a run that ends in the first cycle, once its retraining is done, and is called again."""
    stages = []

    def stop(epoch):
        if stages[-1] == "cycle 1":
            raise Interrupted

    arguments = {"seed": 0, "device": "cpu", "output": output, "command": "hrel run"}
    observer = experiment.Observer(on_stage=lambda name, epochs: stages.append(name), on_epoch=stop)
    with pytest.raises(Interrupted):
        experiment.run(recipe, splits, **arguments, observer=observer)
    assert stages == ["baseline", "cycle 1"]
    report = experiment.run(recipe, splits, **arguments)
    assert report["resumed"] == 1
    check(report, recipe, splits, output)
    return report


def check(report, recipe, splits, output):
    assert len(report["cycles"]) == 1 and report["stopped"] == "the limits are reached"
    (cycle,) = report["cycles"]
    assert {layer: report["filters"]["after"][layer] for layer in recipe.limits} == dict(recipe.limits)
    assert set(cycle["mini_batches"].values()) == {2} and all(width > 0 for width in cycle["widths"].values())
    for layer, relevance in cycle["score_mean"].items():
        assert len(relevance) == report["filters"]["before"][layer]
        assert -1e-4 < min(relevance) and max(relevance) < torch.log2(torch.tensor(float(BATCH)))
    pruned = load_pruned(output).eval()
    assert pruned(torch.zeros(2, *splits.shape)).shape == (2, splits.num_classes)
    assert cycle["macs"] == report["after"]["macs"] < report["before"]["macs"]


@pytest.mark.parametrize("name", ("vgg16-cifar10", "resnet56-cifar10", "resnet56-cifar10-stream"))
def test_a_short_recipe_starts_prunes_is_interrupted_and_goes_on(name, some_of_cifar10, tmp_path):
    report = interrupted_and_resumed(of_one_cycle(name), some_of_cifar10, tmp_path)
    after = report["filters"]["after"]
    if name == "vgg16-cifar10":
        assert [after[f"conv{i}"] for i in (1, 3, 5, 8)] == [62, 122, 243, 460]
    else:
        assert [after[f"stage{i}.8.conv1"] for i in (1, 2, 3)] == [15, 30, 59]
        assert after.get("conv1") == after.get("stage1.3.conv2") == (15 if name.endswith("stream") else None)


def test_resnet50_goes_from_given_weights_through_a_folder_of_photographs(tmp_path):
    for label, photograph in enumerate(load_sample_images().images):
        for part, count in (("train", 12), ("val", 4)):
            (tmp_path / part / str(label)).mkdir(parents=True)
            for number in range(count):
                top, left = 20 * number, 35 * number
                Image.fromarray(photograph[top : top + 60, left : left + 60]).save(
                    tmp_path / part / str(label) / f"{number}.png"
                )
    splits = data.image_folder(tmp_path, size=32)
    torch.manual_seed(1)
    save_file(MODELS["resnet50"](num_classes=2).state_dict(), tmp_path / "trained.safetensors")
    recipe = of_one_cycle("resnet50-imagefolder", weights=str(tmp_path / "trained.safetensors"), margin=4)
    untrained = dataclasses.replace(recipe, baseline=Stage(epochs=0, learning_rate=0.1))
    report = experiment.run(untrained, splits, seed=0, device="cpu", output=tmp_path / "run", command="hrel run")
    check(report, untrained, splits, tmp_path / "run")
    assert [report["filters"]["after"][f"layer{i}.0.conv2"] for i in (1, 2, 3, 4)] == [59, 118, 236, 467]
    assert report["before"]["chosen_epoch"] == 0 and report["recipe"]["weights"] == str(
        tmp_path / "trained.safetensors"
    )
