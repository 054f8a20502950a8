"""Image sets held in memory as tensors, split with a seed, and the mini-batches over them."""
# SPDX-License-Identifier: MIT

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

VALIDATION = 5000  # of the 50,000 or 60,000 training images, as many as most published splits
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of HRel's code


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W), float32, scaled as the network sees them, and their labels (N,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> "Split":
        """The same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Splits:
    """What a run learns from (train), chooses by (validation), and reports (test)."""

    train: Split
    validation: Split
    test: Split

    def to(self, device: str | torch.device) -> "Splits":
        """The same splits on another device."""
        return Splits(self.train.to(device), self.validation.to(device), self.test.to(device))


class Batches:
    """Mini-batches of a split that is in memory; each pass over them is one epoch.

    Args:
        split: the images and labels.
        batch_size: samples in a mini-batch.
        seed: a new order of the samples in each pass, drawn from this seed; None keeps the order of the split.
        drop_last: leave out a last mini-batch that is not full.
        augment: makes of the images (n, C, H, W) of a mini-batch those that are given out, with a generator on the CPU;
            it needs a seed.

    Raises:
        ValueError: ``batch_size`` below 1, no mini-batch at all, or ``augment`` without a seed.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if len(split) < (batch_size if drop_last else 1):
            raise ValueError(f"a split must fill at least one batch of {batch_size}, got {len(split)} samples")
        if augment is not None and seed is None:
            raise ValueError("augment must come with a seed, got seed None")
        self._split = split
        self._batch_size = batch_size
        self._augment = augment
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._drop_last = drop_last

    def __len__(self) -> int:
        full, rest = divmod(len(self._split), self._batch_size)
        return full + (rest > 0 and not self._drop_last)

    def state_dict(self) -> dict[str, Tensor]:
        """What decides the passes to come: the state of the generator."""
        return {} if self._generator is None else {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on as if the passes before had been made here."""
        if self._generator is not None:
            self._generator.set_state(state["generator"])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self._split.images, self._split.labels
        order = None  # (N,)
        if self._generator is not None:
            order = torch.randperm(len(labels), generator=self._generator).to(labels.device)
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            rows = slice(start, start + self._batch_size)
            rows = rows if order is None else order[rows]  # slices of the split are views: no copy
            batch = images[rows]
            yield (batch if self._augment is None else self._augment(batch, self._generator)), labels[rows]


@dataclass(frozen=True)
class CropAndFlip:
    """Random crops of the images with a margin, every second one mirrored, all of a mini-batch at once.

    Attributes:
        margin: pixels added on every side before an image of the old size is cut out.
        fill: value of these pixels in each channel (C,): what black has become.
    """

    margin: int
    fill: tuple[float, ...]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return other images (n, C, H, W), on the device of the given ones."""
        count, channels, height, width = images.shape
        device, sides = images.device, 2 * self.margin
        black = images.new_tensor(self.fill)[None, :, None, None].expand(count, -1, height + sides, width + sides)
        padded = black.clone()  # (n, C, H + 2 margin, W + 2 margin)
        padded[:, :, self.margin : self.margin + height, self.margin : self.margin + width] = images
        top, left = torch.randint(sides + 1, (2, count, 1), generator=generator)  # (n, 1) each
        columns = torch.arange(width).expand(count, -1)  # (n, W)
        mirrored = torch.randint(2, (count, 1), generator=generator).bool()  # (n, 1)
        columns = left + torch.where(mirrored, columns.flip(1), columns)
        rows = top + torch.arange(height)  # (n, H)
        which = torch.arange(count, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[:, None, None]
        return padded[which, channel, rows.to(device)[:, None, :, None], columns.to(device)[:, None, None, :]]


def digits(seed: int = 0) -> Splits:
    """The 1797 real handwritten digits that come with scikit-learn, from 8x8 to 28x28 pixels (bilinear).

    Args:
        seed: draws the split, stratified by class: 1137 for training, 300 for validation, 360 for the test.

    Raises:
        ImportError: scikit-learn is not installed.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (test part), UCI, through
    ``sklearn.datasets.load_digits``.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("the digits need scikit-learn: pip install 'hrel_ext[zoo]'") from error
    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16  # (1797, 1, 8, 8), 17 grey levels to [0, 1]
    images = interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(bunch.target).long()
    learn, test = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=seed)
    train, validation = train_test_split(learn, test_size=300, stratify=labels[learn], random_state=seed)
    return Splits(*(Split(images[rows], labels[rows]) for rows in (train, validation, test)))


def mnist(data_dir: str | os.PathLike | None, seed: int = 0) -> Splits:
    """MNIST in [0, 1] from torchvision's files, which must be there: nothing is downloaded.

    Args:
        data_dir: the folder that holds ``MNIST/raw``; None reads the environment variable HREL_DATA_DIR.
        seed: draws the 5000 validation images from the 60,000 training images. The test split is the official one.

    Raises:
        ImportError: torchvision is not installed.
        FileNotFoundError: no folder was given, or MNIST is not in it.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits.
    """
    return _idx("MNIST", data_dir, seed)


def fashion_mnist(data_dir: str | os.PathLike | None, seed: int = 0) -> Splits:
    """Fashion-MNIST in [0, 1], as `mnist`; the folder holds ``FashionMNIST/raw``.

    Args:
        data_dir, seed: as for `mnist`.

    Raises:
        ImportError, FileNotFoundError: as `mnist`.

    Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747.
    """
    return _idx("FashionMNIST", data_dir, seed)


def cifar10(data_dir: str | os.PathLike | None, seed: int = 0) -> Splits:
    """CIFAR-10 less the mean of each channel, over its standard deviation (those of HRel's code); from the files that
    torchvision downloads, or from a folder of images. Nothing is downloaded.

    Args:
        data_dir: the folder that holds ``cifar-10-batches-py``, or ``cifar10/train`` and ``cifar10/test`` with a folder
            of images for each class; None reads the environment variable HREL_DATA_DIR.
        seed: draws the 5000 validation images from the 50,000 training images. The test split is the official one.

    Raises:
        ImportError: torchvision is not installed.
        FileNotFoundError: no folder was given, or CIFAR-10 is not in it.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    datasets, hint = _torchvision("CIFAR10"), "give the folder that holds cifar-10-batches-py or cifar10"
    folder = _folder("CIFAR10", data_dir, hint)
    if (folder / "cifar-10-batches-py").is_dir():
        both = [datasets.CIFAR10(folder, train=train, download=False) for train in (True, False)]
        pixels = [(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)) for part in both]
    elif all((folder / "cifar10" / part).is_dir() for part in ("train", "test")):
        pixels = [_images(datasets.ImageFolder(folder / "cifar10" / part)) for part in ("train", "test")]
    else:
        raise FileNotFoundError(f"no CIFAR10 in {str(folder)!r}: {hint} by --data-dir or HREL_DATA_DIR")
    mean, std = (torch.tensor(values)[:, None, None] for values in (CIFAR10_MEAN, CIFAR10_STD))
    learn, test = (Split(_scaled(images).sub_(mean).div_(std), labels) for images, labels in pixels)
    return _split_off_validation(learn, test, seed)


def _idx(name: str, data_dir: str | os.PathLike | None, seed: int) -> Splits:
    datasets, hint = _torchvision(name), f"give the folder that holds {name}/raw"
    folder = _folder(name, data_dir, hint)
    try:
        learn, test = (getattr(datasets, name)(folder, train=train, download=False) for train in (True, False))
    except RuntimeError as error:  # what torchvision raises when files are missing
        raise FileNotFoundError(f"no {name} in {str(folder)!r}: {hint} by --data-dir or HREL_DATA_DIR") from error
    learn, test = (Split(_scaled(part.data.unsqueeze(1)), part.targets) for part in (learn, test))
    return _split_off_validation(learn, test, seed)


def _torchvision(name: str) -> ModuleType:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError(f"{name} needs torchvision: pip install 'hrel_ext[zoo]'") from error
    return datasets


def _folder(name: str, data_dir: str | os.PathLike | None, hint: str) -> Path:
    data_dir = data_dir or os.environ.get("HREL_DATA_DIR")
    if not data_dir:
        raise FileNotFoundError(f"{name} needs a folder: {hint} by --data-dir or HREL_DATA_DIR")
    return Path(data_dir)


def _images(files: Sequence[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
    """Pixels (N, C, H, W), uint8, and labels (N,) of images of one size."""
    from torchvision.transforms.functional import pil_to_tensor

    images, labels = zip(*((pil_to_tensor(image), label) for image, label in files), strict=True)
    return torch.stack(images), torch.tensor(labels)


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float().div_(255)


def _split_off_validation(learn: Split, test: Split, seed: int) -> Splits:
    """Draw the validation images from those to learn from."""
    order = torch.randperm(len(learn), generator=torch.Generator().manual_seed(seed))
    validation, train = order[:VALIDATION], order[VALIDATION:]
    return Splits(*(Split(learn.images[rows], learn.labels[rows]) for rows in (train, validation)), test)


# Each takes the folder of the data and the seed of the split.
DATASETS: dict[str, Callable[[str | os.PathLike | None, int], Splits]] = {
    "digits": lambda data_dir, seed: digits(seed),
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
}

# The shape of one sample of each, (C, H, W).
SHAPES: dict[str, tuple[int, int, int]] = {
    "digits": (1, 28, 28),
    "mnist": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
}
