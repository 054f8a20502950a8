"""Networks, data sets and recipes by name: real digits, splits without overlap, batches that repeat with their seed."""
# SPDX-License-Identifier: MIT

import re
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model_weights

from hrel_ext.pruning import count
from hrel_ext.pruning.pruner import remove_filters
from hrel_ext.zoo.data import (
    BLACK,
    CIFAR10_MEAN,
    CIFAR10_STD,
    DATASETS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SHAPES,
    Batches,
    CropAndFlip,
    ImageFiles,
    Split,
    cifar10,
    digits,
    image_folder,
    mnist,
)
from hrel_ext.zoo.models import MODELS, lenet5, load_weights


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


@pytest.mark.parametrize(
    ("name", "conv_macs", "parameters"),
    (  # published: VGG-16 313.73 M with biases and 14.98 M without batch norm, ResNet-56 125.49 M, ResNet-110 252.89 M
        ("vgg16", 313_196_544, 14_991_946),
        ("resnet20", 40_550_400, 269_722),
        ("resnet56", 125_485_056, 853_018),
        ("resnet110", 252_887_040, 1_727_962),
    ),
)
def test_networks_for_cifar_cost_what_the_papers_say(name, conv_macs, parameters):
    network = MODELS[name]()
    cost = count(network, torch.zeros(1, 3, 32, 32))
    assert (cost.conv_macs, cost.parameters) == (conv_macs, parameters)
    assert MODELS[name](num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_a_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros():
    x = torch.randn(2, 16, 8, 8)
    out = MODELS["resnet20"]().stage2[0].shortcut(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2]) and not out[:, :8].any() and not out[:, 24:].any()


def test_filters_inside_the_blocks_of_a_residual_network_can_be_removed():
    network = MODELS["resnet20"]()
    for name, width in (("stage1.0.conv1", 16), ("stage2.0.conv1", 32), ("stage3.2.conv1", 64)):
        remove_filters(network, torch.zeros(1, 3, 32, 32), {name: [0, 1, 2]})
        assert network.get_submodule(name).out_channels == width - 3
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ("resnet18", "mobilenet_v2"))
def test_networks_of_torchvision_come_by_name(name):
    assert MODELS[name](num_classes=5).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


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


@pytest.fixture
def numbered_images(tmp_path):
    """A folder cifar10/ of images: 5010 to learn from, 6 for the test; every pixel of one holds its number."""
    for part, size in (("train", 5010), ("test", 6)):
        for number in range(size):
            folder = tmp_path / "cifar10" / part / f"class{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number % 256, number // 256, 7)).save(folder / f"{number:05}.png")
    return tmp_path


def test_cifar10_comes_from_a_folder_of_images_normalised_and_split(numbered_images):
    splits = cifar10(numbered_images, seed=3)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [10, 5000, 6]
    mean, std = (torch.tensor(values)[:, None, None] for values in (CIFAR10_MEAN, CIFAR10_STD))
    numbers = []
    for part in (splits.train, splits.validation):
        pixels = (part.images * std + mean) * 255  # (N, 3, 32, 32)
        number = (pixels[:, 0, 0, 0] + 256 * pixels[:, 1, 0, 0]).round().long()  # (N,)
        assert torch.equal(part.labels, number % 3)
        numbers += number.tolist()
    assert sorted(numbers) == list(range(5010))
    again = cifar10(numbered_images, seed=3)
    assert torch.equal(again.train.images, splits.train.images)


def test_missing_cifar10_says_how_to_give_its_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no CIFAR10 in {str(tmp_path)!r}: give the folder")):
        cifar10(tmp_path)


def draw_images(root, part, classes, count, size=(40, 30)):
    """So many images of each class in root/part; red is the class, green the number, blue grows downwards."""
    for label, name in enumerate(classes):
        (root / part / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", size, (10 * label, number, 0))
            image.paste((10 * label, number, 200), (0, size[1] // 2, *size))
            image.save(root / part / name / f"{number:03}.png")


@pytest.fixture
def folder(tmp_path):
    """30 images of three classes in train and in val."""
    draw_images(tmp_path, "train", "abc", 30)
    draw_images(tmp_path, "val", "abc", 2)
    return tmp_path


def pixels_of(images):
    """The bytes that were normalised, (n, 3, H, W)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images * std + mean) * 255).round().long()


def test_an_image_folder_is_split_by_class_and_read_when_it_is_asked_for(folder):
    splits = image_folder(folder, seed=3, size=14)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [81, 9, 6]
    assert (splits.num_classes, splits.shape) == (3, (3, 14, 14))
    assert splits.validation.labels.bincount().tolist() == [3, 3, 3]
    seen = []
    for part in (splits.train, splits.validation):
        pixels = pixels_of(part.images[:])
        assert part.images.shape == pixels.shape == (len(part), 3, 14, 14)
        assert torch.equal(pixels[:, 0, 7, 7], 10 * part.labels)
        seen += zip(part.labels.tolist(), pixels[:, 1, 7, 7].tolist(), strict=True)
    assert sorted(seen) == [(label, number) for label in range(3) for number in range(30)]
    again, other = (image_folder(folder, seed=seed, size=14).validation.images[:] for seed in (3, 4))
    assert torch.equal(again, splits.validation.images[:]) and not torch.equal(again, other)


def test_an_image_is_resized_by_its_shorter_side_and_cropped_in_the_centre(tmp_path):
    draw_images(tmp_path, "", "a", 1, size=(60, 20))  # a third of it is left, with the border in its middle
    pixels = pixels_of(ImageFiles([str(tmp_path / "a/000.png")], size=14)[:])
    assert pixels[0, 2, :5].unique().tolist() == [0] and pixels[0, 2, 9:].unique().tolist() == [200]
    assert pixels.shape == (1, 3, 14, 14)


def test_batches_of_an_image_folder_are_those_of_the_same_images_in_memory(folder):
    lazy = image_folder(folder, size=14).train
    held = Split(lazy.images[:], lazy.labels)
    crops = CropAndFlip(1, BLACK["imagefolder"])
    for options in ({}, {"seed": 1}, {"seed": 1, "drop_last": True, "augment": crops}):
        files, memory = Batches(lazy, 20, **options), Batches(held, 20, **options)
        for _ in range(2):
            for (x, y), (wanted, labels) in zip(files, memory, strict=True):
                assert torch.equal(x, wanted) and torch.equal(y, labels)
    rows = torch.tensor([5, 80, 5])
    assert torch.equal(lazy.take(rows).images[:], held.take(rows).images) and lazy.images[rows].device.type == "cpu"
    second = Batches(lazy.to("cpu"), 20, seed=1)
    second.load_state_dict(files.state_dict())
    assert torch.equal(next(iter(second))[1], next(iter(files))[1])
    images, _ = next(iter(Batches(lazy, 20, seed=1, augment=crops)))
    assert images.amin((0, 2, 3)).tolist() == pytest.approx(BLACK["imagefolder"])


def test_val_is_the_validation_split_where_test_is_there_as_well(folder):
    draw_images(folder, "test", "abc", 1)
    splits = image_folder(folder, size=14)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [90, 6, 3]


def test_an_image_folder_that_does_not_fit_is_refused_with_its_path(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no imagefolder in {str(folder / 'val')!r}: give the")):
        image_folder(folder / "val")
    broken = folder / "train/b/007.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(OSError, match=re.escape(f"{str(broken)!r} must be an image that can be read, got: ")):
        for part in (splits := image_folder(folder, size=14)).train, splits.validation:
            list(Batches(part, 10))
    for file in list((folder / "train/b").iterdir())[1:]:
        file.unlink()
    message = f"{str(folder / 'train/b')!r} must hold at least 2 images for its class, got 1"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        image_folder(folder)
    (folder / "val/d").mkdir()
    message = f"{str(folder / 'val')!r} must hold the classes of {str(folder / 'train')!r}, got d only here and none"
    with pytest.raises(ValueError, match=re.escape(message)):
        image_folder(folder)


def test_every_data_set_has_its_shape_and_its_black():
    assert DATASETS.keys() == SHAPES.keys() == BLACK.keys()
    assert {name: shape[0] for name, shape in SHAPES.items()} == {name: len(black) for name, black in BLACK.items()}


@pytest.mark.parametrize(("mirror", "least"), ((True, 40), (False, 23)))  # 200 draws leave out one of 50 on average
def test_crops_are_windows_of_the_padded_image_some_of_them_mirrored(mirror, least):
    images = torch.arange(1.0, 2 * 5 * 6 + 1).reshape(1, 2, 5, 6).repeat(200, 1, 1, 1)
    out = CropAndFlip(2, (-1.0, -2.0), mirror)(images, torch.Generator().manual_seed(0))
    padded = torch.stack([torch.nn.functional.pad(images[0, c], (2,) * 4, value=v) for c, v in enumerate((-1, -2))])
    windows = padded.unfold(1, 5, 1).unfold(2, 6, 1).flatten(1, 2).transpose(0, 1)  # (25, 2, 5, 6)
    choices = torch.cat([windows, windows.flip(-1)] if mirror else [windows]).flatten(1)  # (50 or 25, 60)
    drawn = (out.flatten(1)[:, None] == choices).all(-1)  # (200, 50 or 25)
    assert (drawn.sum(1) == 1).all()
    assert drawn.any(0).sum() > least


def test_batches_augment_by_their_seed_and_only_with_one():
    split = Split(torch.randn(10, 3, 8, 8), torch.arange(10))
    passes = [list(Batches(split, 5, seed=1, augment=CropAndFlip(1, (0.0, 0.0, 0.0)))) for _ in range(2)]
    for (first, labels), (second, again) in zip(*passes, strict=True):
        assert torch.equal(first, second) and torch.equal(labels, again)
        assert not torch.equal(first, split.images[labels])
    with pytest.raises(ValueError, match="augment must come with a seed, got seed None"):
        Batches(split, 5, augment=CropAndFlip(1, (0.0, 0.0, 0.0)))


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


def test_weights_come_from_a_file_or_from_the_cache_of_torchvision_and_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    trained, network = MODELS["resnet18"](), MODELS["resnet18"]()
    save_file(trained.state_dict(), file := tmp_path / "trained.safetensors")
    load_weights(network, str(file), "resnet18")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name])

    entry = get_model_weights("resnet18")["IMAGENET1K_V1"]
    cached = tmp_path / "hub/checkpoints" / entry.url.rsplit("/", 1)[-1]
    message = f"weights IMAGENET1K_V1 of resnet18 are not in {cached}: put {entry.url} there, or ask for the download"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}"):
        load_weights(network, "IMAGENET1K_V1", "resnet18")
    asked = []
    monkeypatch.setattr(type(entry), "get_state_dict", lambda *_, **how: asked.append(how) or trained.state_dict())
    load_weights(network, "IMAGENET1K_V1", "resnet18", download=True)
    cached.parent.mkdir(parents=True)
    cached.touch()
    load_weights(network, "IMAGENET1K_V1", "resnet18")
    assert asked == [{"check_hash": True}] * 2


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    (
        ("none.safetensors", FileNotFoundError, "weights must be in a file that is there, got 'none.safetensors'"),
        ("torn.safetensors", ValueError, "weights must be in a whole safetensors file, got 'torn.safetensors': "),
        (
            "other.safetensors",
            ValueError,
            "weights must fit lenet5, got other.safetensors, which has another shape of fc3.weight and 1 more, "
            "(7, 500) in place of (10, 500)",
        ),
        (
            "less.safetensors",
            ValueError,
            "weights must fit lenet5, got less.safetensors, which has no conv1.weight and 9 more",
        ),
        (
            "more.safetensors",
            ValueError,
            "weights must fit lenet5, got more.safetensors, which has the unknown stranger",
        ),
        (
            "IMAGENET1K_V1",
            ValueError,
            "weights must be a file ending in .safetensors; torchvision has none for lenet5, got 'IMAGENET1K_V1'",
        ),
    ),
)
def test_weights_that_do_not_fit_are_named(weights, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("torn.safetensors").write_bytes(b"x")
    save_file(lenet5(num_classes=7).state_dict(), "other.safetensors")
    save_file({"x": torch.zeros(1)}, "less.safetensors")
    save_file(lenet5().state_dict() | {"stranger": torch.zeros(1)}, "more.safetensors")
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        load_weights(lenet5(), weights, "lenet5")
