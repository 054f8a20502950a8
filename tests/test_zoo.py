"""Networks, data sets and recipes by name: real digits, splits without overlap, batches that repeat with their seed."""
# SPDX-License-Identifier: MIT

import re
from itertools import chain

import pytest
import torch

from hrel_ext.pruning import check_schedule
from hrel_ext.recipes import RECIPES
from hrel_ext.zoo.data import DATASETS, Batches, Split, digits, mnist
from hrel_ext.zoo.models import MODELS, lenet5


@pytest.fixture
def numbers():
    return Split(torch.arange(10.0), torch.arange(10))


def test_lenet5_has_the_layers_of_the_published_code_and_scaled_weights():
    torch.manual_seed(0)
    network = lenet5(num_classes=7)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    assert [network[i].out_channels for i in (0, 3)] == [20, 50]
    assert [network.get_submodule(name).out_features for name in ("fc1", "fc2", "fc3")] == [800, 500, 7]
    assert network.fc1.weight.std().item() == pytest.approx((2 / 800) ** 0.5, rel=0.01)  # Kaiming for 800 inputs
    assert not network.conv1.bias.any() and not network.fc3.bias.any()


def test_digits_are_real_images_split_without_overlap_and_by_class():
    splits = digits(seed=0)
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [1137, 300, 360]
    images = torch.cat([part.images for part in parts])
    assert images.shape == (1797, 1, 28, 28) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1
    assert len(images.flatten(1).unique(dim=0)) == 1797  # the set has no duplicates, so an overlap would show
    for part in parts:
        shares = part.labels.bincount() / len(part)
        assert (shares - 0.1).abs().max() < 0.01  # the set itself has 9.7 to 10.2 % of each class


def test_a_seed_repeats_its_digits_and_another_one_does_not():
    assert torch.equal(digits(seed=4).test.images, digits(seed=4).test.images)
    assert not torch.equal(digits(seed=4).test.images, digits(seed=5).test.images)


def test_missing_mnist_says_how_to_give_its_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("HREL_DATA_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match=r"MNIST needs a folder: .* --data-dir or HREL_DATA_DIR"):
        mnist(None)
    with pytest.raises(FileNotFoundError, match=re.escape(f"no MNIST in {str(tmp_path)!r}")):
        mnist(tmp_path)


def test_batches_keep_the_order_or_draw_a_new_one_in_each_pass(numbers):
    in_order = Batches(numbers, 4)
    assert len(in_order) == 3
    for _ in range(2):
        assert [labels.tolist() for _, labels in in_order] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shuffled = Batches(numbers, 4, seed=1)
    first, second = ([labels.tolist() for _, labels in shuffled] for _ in range(2))
    assert first != second and sorted(chain(*first)) == sorted(chain(*second)) == list(range(10))
    again = Batches(numbers, 4, seed=1)
    assert [[labels.tolist() for _, labels in again] for _ in range(2)] == [first, second]
    for images, labels in shuffled:
        assert torch.equal(images, labels.float())  # image and label stay together


def test_batches_drop_the_rest_and_refuse_what_fills_none(numbers):
    full = Batches(numbers, 4, drop_last=True)
    assert len(full) == 2 and [len(labels) for _, labels in full] == [4, 4]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Batches(numbers, 0)
    with pytest.raises(ValueError, match="a split must fill at least one batch of 11, got 10 samples"):
        Batches(numbers, 11, drop_last=True)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: f"{recipe.model}-{recipe.data}")
def test_a_recipe_fits_its_network(recipe):
    assert RECIPES[recipe.model, recipe.data] is recipe and recipe.data in DATASETS
    check_schedule(MODELS[recipe.model](), recipe.limits, recipe.shares, recipe.scored)
