"""Image sets in memory or read from files as they are needed, split with a seed, and the mini-batches over them."""
# SPDX-License-Identifier: MIT

import copy
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

VALIDATION = 5000  # of the 50,000 or 60,000 training images, as many as most published splits
VALIDATION_PER_CLASS = 50  # of an ImageFolder, as many as ImageNet's own validation set has
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of HRel's code
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those torchvision's weights expect


class ImageFiles:
    """Images in files, as a tensor (N, 3, H, W) whose rows are read when they are asked for, on a pool of threads.

    An image is resized, its shorter side to 8/7 of the crop (256 pixels for 224), cropped in its centre, and
    normalised by ImageNet's mean and standard deviation of each channel.

    Args:
        paths: of the files, in the order of the rows.
        size: height and width of the crop in pixels.
        device: of the tensors that are given out; files are decoded on the CPU and go there as bytes.

    Source: the resizing, torchvision's references for ImageNet.
    """

    def __init__(self, paths: Sequence[str], size: int, device: str | torch.device = "cpu") -> None:
        self._paths, self._size, self._device = paths, size, torch.device(device)
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD)
        )  # (3, 1, 1)
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="images")

    @property
    def shape(self) -> torch.Size:
        """(N, 3, H, W), without reading anything."""
        return torch.Size((len(self._paths), 3, self._size, self._size))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """The images (n, 3, H, W), float32, of a slice or of row numbers (n,).

        Raises:
            OSError: names a file that cannot be read as an image.
        """
        return self._images(self._read(rows))

    def in_turn(self, all_rows: Iterable[slice | Tensor]) -> Iterator[Tensor]:
        """The images of one set of rows after the other; the next ones are decoded while the caller works."""
        ahead: list[Future] | None = None
        for rows in all_rows:
            current, ahead = ahead, self._read(rows)
            if current is not None:
                yield self._images(current)
        if ahead is not None:
            yield self._images(ahead)

    def take(self, rows: Tensor) -> "ImageFiles":
        """The files of these rows (n,), unread."""
        return ImageFiles([self._paths[row] for row in rows.tolist()], self._size, self._device)

    def to(self, device: str | torch.device) -> "ImageFiles":
        """The same files, given out on another device."""
        return ImageFiles(self._paths, self._size, device)

    def _read(self, rows: slice | Tensor) -> list[Future]:
        paths = self._paths[rows] if isinstance(rows, slice) else (self._paths[row] for row in rows.tolist())
        return [self._pool.submit(_decoded, path, self._size) for path in paths]

    def _images(self, files: Sequence[Future]) -> Tensor:
        pixels = torch.stack([file.result() for file in files])  # (n, 3, H, W), uint8
        return _scaled(pixels.to(self._device)).sub_(self._mean).div_(self._std)


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W), float32, scaled as the network sees them, and their labels (N,), int64."""

    images: Tensor | ImageFiles
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> "Split":
        """The same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, rows: Tensor) -> "Split":
        """The split of these rows (n,); files stay unread."""
        images = self.images[rows] if isinstance(self.images, Tensor) else self.images.take(rows)
        return Split(images, self.labels[rows])


@dataclass(frozen=True, eq=False)
class Splits:
    """What a run learns from (train), chooses by (validation), and reports (test)."""

    train: Split
    validation: Split
    test: Split

    @property
    def num_classes(self) -> int:
        """Classes C, numbered from 0."""
        return 1 + max(int(split.labels.max()) for split in (self.train, self.validation, self.test))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, (C, H, W)."""
        return tuple(self.train.images.shape[1:])

    def to(self, device: str | torch.device) -> "Splits":
        """The same splits on another device."""
        return Splits(self.train.to(device), self.validation.to(device), self.test.to(device))


class Batches:
    """Mini-batches of a split; each pass over them is one epoch.

    Args:
        split: the images and labels.
        batch_size: samples in a mini-batch.
        seed: a new order of the samples in each pass, drawn from this seed; None keeps the order of the split.
        drop_last: leave out a last mini-batch that is not full.
        augment: makes of the images (n, C, H, W) of a mini-batch those that are given out, with a generator on the CPU;
            it needs a seed. Of several processes each has it draw for the mini-batches of the others as well, whose
            images have no values then (device "meta").

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
        self._rank, self._num_ranks = 0, 1

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

    def for_rank(self, rank: int, num_ranks: int) -> "Batches":
        """The same passes for one of several processes, which reads the images of its own mini-batches alone.

        Args:
            rank: number of the process, whose mini-batches are those with numbers rank, rank + num_ranks, ...
            num_ranks: how many there are.

        Returns:
            Mini-batches in the same order, from the same generator; the images of the others are on the device "meta".
        """
        batches = copy.copy(self)
        batches._rank, batches._num_ranks = rank, num_ranks
        return batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self._split.images, self._split.labels
        order = None  # (N,)
        if self._generator is not None:
            order = torch.randperm(len(labels), generator=self._generator).to(labels.device)
        starts = range(0, len(self) * self._batch_size, self._batch_size)
        slices = [slice(start, start + self._batch_size) for start in starts]
        rows = slices if order is None else [order[each] for each in slices]  # slices of the split are views: no copy
        own = rows[self._rank :: self._num_ranks]
        in_turn = images.in_turn(own) if isinstance(images, ImageFiles) else (images[each] for each in own)
        for number, each in enumerate(rows):
            if number % self._num_ranks == self._rank:
                batch = next(in_turn)
            else:
                batch = torch.empty(len(labels[each]), *images.shape[1:], device="meta")
            yield (batch if self._augment is None else self._augment(batch, self._generator)), labels[each]


@dataclass(frozen=True)
class CropAndFlip:
    """Random crops of the images with a margin, mirrored or not, all of a mini-batch at once.

    Attributes:
        margin: pixels added on every side before an image of the old size is cut out.
        fill: value of these pixels in each channel (C,): what black has become.
        mirror: whether every second image is mirrored.
    """

    margin: int
    fill: tuple[float, ...]
    mirror: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return other images (n, C, H, W), on the device of the given ones."""
        count, channels, height, width = images.shape
        device, sides = images.device, 2 * self.margin
        black = images.new_tensor(self.fill)[None, :, None, None].expand(count, -1, height + sides, width + sides)
        padded = black.clone()  # (n, C, H + 2 margin, W + 2 margin)
        padded[:, :, self.margin : self.margin + height, self.margin : self.margin + width] = images
        top, left = torch.randint(sides + 1, (2, count, 1), generator=generator)  # (n, 1) each
        columns = torch.arange(width).expand(count, -1)  # (n, W)
        if self.mirror:
            mirrored = torch.randint(2, (count, 1), generator=generator).bool()  # (n, 1)
            columns = torch.where(mirrored, columns.flip(1), columns)
        columns = left + columns
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


def image_folder(data_dir: str | os.PathLike | None, seed: int = 0, size: int = 224) -> Splits:
    """Images in a folder for each class, for sets too large for memory: decoded as they are needed, see `ImageFiles`.

    Args:
        data_dir: the folder that holds ``train`` and ``val`` or ``test``, with a folder of images for each class in
            both; None reads the environment variable HREL_DATA_DIR. ``val``, or ``test``, is the test split; where both
            are there, ``val`` is the validation split.
        seed: draws the validation images from ``train`` where there are not both, a tenth of each class, at least 1
            and at most 50 of them.
        size: height and width of an image in pixels.

    Raises:
        ImportError: torchvision is not installed.
        FileNotFoundError: no folder was given, it has not these folders, or a class has no images.
        ValueError: the folders have not the same classes.
        OSError: names a file that cannot be read as an image, in the mini-batch with it.
    """
    datasets, hint = _torchvision("imagefolder"), "give the folder that holds train, and val or test,"
    root = _folder("imagefolder", data_dir, hint)
    names = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if names[:1] != ["train"] or len(names) == 1:
        raise FileNotFoundError(f"no imagefolder in {str(root)!r}: {hint} by --data-dir or HREL_DATA_DIR")
    folders = [datasets.ImageFolder(root / name, allow_empty=True) for name in names]
    _check_classes(folders, least=2 if len(folders) == 2 else 1)
    learn, *others = (
        Split(ImageFiles([path for path, _ in folder.samples], size), torch.tensor(folder.targets))
        for folder in folders
    )
    if len(others) == 2:
        return Splits(learn, *others)
    held_out = _held_out(learn.labels, seed)  # (N,)
    return Splits(*(learn.take(rows.nonzero()[:, 0]) for rows in (~held_out, held_out)), *others)


def _idx(name: str, data_dir: str | os.PathLike | None, seed: int) -> Splits:
    datasets, hint = _torchvision(name), f"give the folder that holds {name}/raw, its files unpacked,"
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


def _decoded(path: str, size: int) -> Tensor:
    """Pixels of an image, (3, H, W), uint8."""
    from torchvision.datasets.folder import pil_loader
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    try:
        return pil_to_tensor(center_crop(resize(pil_loader(path), size * 8 // 7), [size, size]))
    except Exception as error:  # Pillow has a kind of its own for many a broken file, a SyntaxError for one
        raise OSError(f"{path!r} must be an image that can be read, got: {error}") from error


def _check_classes(folders: Sequence[Any], least: int) -> None:
    """Refuse other classes than those of the first folder, and classes with too few images (``least`` in the first)."""
    first = folders[0]
    for folder in folders:
        if folder.classes != first.classes:
            here, there = set(folder.classes), set(first.classes)
            raise ValueError(
                f"{str(folder.root)!r} must hold the classes of {str(first.root)!r}, "
                f"got {_some(here - there)} only here and {_some(there - here)} only there"
            )
    for folder in folders:
        counts = torch.tensor(folder.targets, dtype=torch.long).bincount(minlength=len(folder.classes)).tolist()
        for name, count in zip(folder.classes, counts, strict=True):
            needed = least if folder is first else 1
            if count < needed:
                path = str(Path(folder.root) / name)
                raise FileNotFoundError(f"{path!r} must hold at least {needed} images for its class, got {count}")


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (" and others" if len(names) > 3 else "") or "none"


def _held_out(labels: Tensor, seed: int) -> Tensor:
    """Which of N samples are for validation: a tenth of each class, at least 1 and at most VALIDATION_PER_CLASS."""
    generator, drawn = torch.Generator().manual_seed(seed), torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]  # (n,)
        order = torch.randperm(len(rows), generator=generator)
        drawn[rows[order[: max(1, min(len(rows) // 10, VALIDATION_PER_CLASS))]]] = True
    return drawn


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float().div_(255)


def _split_off_validation(learn: Split, test: Split, seed: int) -> Splits:
    """Draw the validation images from those to learn from."""
    order = torch.randperm(len(learn), generator=torch.Generator().manual_seed(seed))
    return Splits(learn.take(order[VALIDATION:]), learn.take(order[:VALIDATION]), test)


# Each takes the folder of the data and the seed of the split.
DATASETS: dict[str, Callable[[str | os.PathLike | None, int], Splits]] = {
    "digits": lambda data_dir, seed: digits(seed),
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "imagefolder": image_folder,
}

# The shape of one image of each, (C, H, W).
SHAPES: dict[str, tuple[int, int, int]] = {
    "digits": (1, 28, 28),
    "mnist": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "imagefolder": (3, 224, 224),
}

# What a black pixel has become in each, per channel (C,), for `CropAndFlip`.
BLACK: dict[str, tuple[float, ...]] = {
    "digits": (0.0,),
    "mnist": (0.0,),
    "fashion_mnist": (0.0,),
    "cifar10": tuple(-mean / std for mean, std in zip(CIFAR10_MEAN, CIFAR10_STD, strict=True)),
    "imagefolder": tuple(-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)),
}
