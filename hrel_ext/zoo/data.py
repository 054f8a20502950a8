"""Image sets held in memory as tensors, split with a seed, and the mini-batches over them."""
# SPDX-License-Identifier: MIT

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

MNIST_VALIDATION = 5000  # of 60,000 training images, as many as LeCun's and most later splits


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W), float32 in [0, 1], and their labels (N,), int64."""

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

    Raises:
        ValueError: ``batch_size`` below 1, or no mini-batch at all.
    """

    def __init__(self, split: Split, batch_size: int, *, seed: int | None = None, drop_last: bool = False) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if len(split) < (batch_size if drop_last else 1):
            raise ValueError(f"a split must fill at least one batch of {batch_size}, got {len(split)} samples")
        self._split = split
        self._batch_size = batch_size
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._drop_last = drop_last

    def __len__(self) -> int:
        full, rest = divmod(len(self._split), self._batch_size)
        return full + (rest > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self._split.images, self._split.labels
        order = None  # (N,)
        if self._generator is not None:
            order = torch.randperm(len(labels), generator=self._generator).to(labels.device)
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            rows = slice(start, start + self._batch_size)
            rows = rows if order is None else order[rows]  # slices of the split are views: no copy
            yield images[rows], labels[rows]


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
    """
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        raise ImportError("MNIST needs torchvision: pip install 'hrel_ext[zoo]'") from error
    data_dir = data_dir or os.environ.get("HREL_DATA_DIR")
    hint = "give the folder that holds MNIST/raw by --data-dir or HREL_DATA_DIR"
    if not data_dir:
        raise FileNotFoundError(f"MNIST needs a folder: {hint}")
    try:
        learn, test = (MNIST(Path(data_dir), train=train, download=False) for train in (True, False))
    except RuntimeError as error:  # what torchvision raises when files are missing
        raise FileNotFoundError(f"no MNIST in {str(data_dir)!r}: {hint}") from error
    order = torch.randperm(len(learn), generator=torch.Generator().manual_seed(seed))
    learned = Split(_scaled(learn.data)[order], learn.targets[order])
    return Splits(
        train=Split(learned.images[MNIST_VALIDATION:], learned.labels[MNIST_VALIDATION:]),
        validation=Split(learned.images[:MNIST_VALIDATION], learned.labels[:MNIST_VALIDATION]),
        test=Split(_scaled(test.data), test.targets),
    )


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.unsqueeze(1).float() / 255  # (N, 1, 28, 28)


# Each takes the folder of the data and the seed of the split.
DATASETS: dict[str, Callable[[str | os.PathLike | None, int], Splits]] = {
    "digits": lambda data_dir, seed: digits(seed),
    "mnist": mnist,
}
