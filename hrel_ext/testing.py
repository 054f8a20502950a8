"""What the tests and the benchmarks share: cases, adversarial activations, the oracle, tolerances, layer shapes."""
# SPDX-License-Identifier: MIT

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from hrel_ext import reference
from hrel_ext._batch import prepare, widths

LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed", "expanded")


@dataclass(frozen=True)
class Case:
    """One reproducible problem: activations, labels and a kernel width for each filter."""

    name: str
    why: str
    num_samples: int = 33
    num_filters: int = 9
    map_shape: tuple[int, ...] = (2, 2)
    num_classes: int = 5
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"  # one of LAYOUTS
    data: str = "random"  # one of DATA
    mean_distances: float = 1.0  # kernel width in mean distances of the filter
    balanced: bool = True  # classes of equal size; else every sample draws its own, as in a shuffled mini-batch

    def __str__(self) -> str:
        return f"{self.name}-{str(self.dtype).removeprefix('torch.')}"

    def make(self, seed: int = 1787) -> tuple[Tensor, Tensor]:
        """Return acts (N, F, *map_shape) and labels (N,), the same ones for the same seed."""
        rng = Generator().manual_seed(seed)
        maps = DATA[self.data](rng, self.num_samples, self.num_filters, math.prod(self.map_shape))  # (N, F, D), float64
        acts = maps.to(self.dtype).reshape(self.num_samples, self.num_filters, *self.map_shape)
        if self.balanced:
            classes = torch.arange(self.num_samples) % self.num_classes  # (N,), no class empty
            labels = classes[torch.randperm(self.num_samples, generator=rng)]  # (N,)
        else:
            labels = torch.randint(self.num_classes, (self.num_samples,), generator=rng)  # (N,)
        return lay_out(acts, self.layout), labels

    def sigma(self, acts: Tensor) -> Tensor:
        """Return one kernel width for each filter, (F,), in the dtype of the activations."""
        any_labels = torch.zeros(len(acts), dtype=torch.int64)  # (N,); a search among one width does not use them
        low = high = self.mean_distances
        width = reference.kernel_width(acts.double(), any_labels, per_filter=True, low=low, high=high, num_widths=1)
        return width.to(self.dtype)


def tolerance_bits(dtype: torch.dtype, num_samples: int, alpha: float) -> float:
    """Return the largest error of one entropy against the float64 reference, in bits; a relevance may err twice that.

    Below alpha = 0.9 an error eps of a zero eigenvalue counts as eps^alpha, so no limit below N eps^alpha can hold.
    """
    if dtype == torch.float64:
        tolerance, eps = 1e-10, torch.finfo(torch.float64).eps
    else:  # half precision is computed in float32
        tolerance, eps = (2e-5 if num_samples <= 128 else 4e-5 * max(1.0, num_samples / 256)), 2.0**-23
    return tolerance if alpha >= 0.9 else max(tolerance, num_samples * eps**alpha)


def oracle(
    acts: Tensor, labels: Tensor, sigma: float | str | Tensor | None, alpha: float, label_sigma: float = 0.1
) -> reference.RelevanceTerms:
    """Return the terms of the relevance in float64, computed on the CPU wherever the operands are."""
    sigma = sigma.cpu().double() if isinstance(sigma, Tensor) else sigma
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them make eigvalsh of small matrices many times slower on a busy machine
    try:
        return reference.relevance_terms(
            acts.cpu().double(), labels.cpu(), sigma=sigma, alpha=alpha, label_sigma=label_sigma
        )
    finally:
        torch.set_num_threads(num_threads)


def left_of_copies(batches: list[tuple[Tensor, Tensor]], sigma: Tensor) -> Tensor:
    """Return, for filters f and g, what the kernel of g leaves of that of f, as a share of its variance: (F, F).

    As `hrel_ext.select_filters` finds copies, one pair of filters after the other in float64, kernels of all
    mini-batches (acts, labels) side by side; 0 where all distances are equal but for rounding.
    """
    kernels = []
    for f, width in enumerate(sigma.tolist()):
        parts = [torch.zeros(0, dtype=torch.float64)]
        for acts, _ in batches:
            distances = torch.pdist(acts[:, f].cpu().double().reshape(len(acts), -1) / width).clamp(max=32)
            parts.append(1 - torch.exp(-((distances / distances.mean()) ** 2)) if distances.any() else distances)
        kernels.append(torch.cat(parts))  # (P,)
    result = torch.zeros(len(kernels), len(kernels), dtype=torch.float64)
    for f, kernel in enumerate(kernels):
        for g, other in enumerate(kernels):
            multiple = kernel @ other / (other @ other) if other.any() else 0.0
            left = (kernel - multiple * other).square().sum()
            if left > 1e-12 * kernel.square().sum():
                result[f, g] = left / (kernel - kernel.mean()).square().sum()
    return result


def relevance_operands(
    acts: Tensor, labels: Tensor, sigma: float | Tensor, alpha: float, label_sigma: float = 0.1
) -> tuple[Tensor, Tensor, Tensor, Tensor, float, Tensor | None]:
    """Return the operands of the op ``hrel_ext::relevance``, as ``hrel_ext.relevance`` prepares them."""
    batch = prepare(acts, labels, label_sigma)
    classes = batch.classes
    return batch.acts, classes.order, classes.class_offsets, widths(sigma, batch.acts), alpha, batch.label_gram


def assert_terms_close(
    terms: NamedTuple, expected: reference.RelevanceTerms, dtype: torch.dtype, num_samples: int, alpha: float
) -> None:
    """Raise AssertionError unless each term, on any device, is as close to the oracle as its dtype allows."""
    tolerance = tolerance_bits(dtype, num_samples, alpha)
    for name, value in terms._asdict().items():
        error = (value.cpu().double() - getattr(expected, name)).abs().max().item() if value.numel() else 0.0
        limit = 2 * tolerance if name == "relevance" else tolerance
        if not error <= limit:  # so that a NaN fails as well
            raise AssertionError(f"{name} is off by {error:.2e} bits, the limit is {limit:.2e}")


def lay_out(acts: Tensor, layout: str) -> Tensor:
    """Return the same values in another memory layout; "expanded" repeats the first filter with a stride of 0."""
    if layout == "contiguous":
        return acts.contiguous()
    if layout == "channels_last":
        return acts.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":  # every second element between NaNs, which a read at a wrong stride returns
        shape = [2 * extent + 1 for extent in acts.shape]
        window = tuple(slice(1, None, 2) for _ in shape)
        padded = acts.new_full(shape, torch.nan)
        padded[window] = acts
        return padded[window]
    if layout == "transposed":
        return acts.permute(*reversed(range(acts.ndim))).contiguous().permute(*reversed(range(acts.ndim)))
    if layout == "expanded":
        return acts[:, :1].clone().expand_as(acts)
    raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")


def random(rng: Generator, *shape: int) -> Tensor:
    """Independent normal values, (N, F, D)."""
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def rectified(rng: Generator, *shape: int) -> Tensor:
    """What a ReLU leaves of normal values."""
    return random(rng, *shape).relu()


def sparse(rng: Generator, *shape: int) -> Tensor:
    """A ReLU that fires on one value in seven hundred: many maps are exactly equal."""
    return (random(rng, *shape) - 3).relu()


def near_duplicates(rng: Generator, *shape: int) -> Tensor:
    """Maps a thousandth apart around a common one."""
    return 1 + 1e-3 * random(rng, *shape)


def dead(rng: Generator, *shape: int) -> Tensor:
    """Filters that never fire."""
    return torch.zeros_like(random(rng, *shape))


def constant(rng: Generator, *shape: int) -> Tensor:
    """Filters that give every sample the same map."""
    return random(rng, 1, *shape[1:]).expand(*shape)


def some_dead(rng: Generator, *shape: int) -> Tensor:
    """Every third filter dead, between live ones."""
    maps = random(rng, *shape)
    maps[:, ::3] = 0
    return maps


def outlier(rng: Generator, *shape: int) -> Tensor:
    """One sample, the first, a million times as far out as the others."""
    maps = random(rng, *shape)
    maps[0] *= 1e6
    return maps


def far_outlier(rng: Generator, *shape: int) -> Tensor:
    """One sample, the last, so far out that the squares of its distances come near the largest float32."""
    maps = random(rng, *shape)
    maps[-1] = 1e17
    return maps


def line(rng: Generator, num_samples: int, num_filters: int, num_features: int) -> Tensor:
    """Equally spaced samples on a line: a Gram matrix with a smooth, fast falling spectrum."""
    position = torch.linspace(0, 1, num_samples, dtype=torch.float64)[:, None, None]  # (N, 1, 1)
    return position * random(rng, 1, num_filters, num_features)


def two_groups(rng: Generator, num_samples: int, num_filters: int, num_features: int) -> Tensor:
    """Two distinct maps only, shared by the samples two to one: a Gram matrix of rank two."""
    maps = random(rng, 2, num_filters, num_features)
    return maps[(torch.arange(num_samples) % 3 == 0).long()]


def two_levels(rng: Generator, *shape: int) -> Tensor:
    """Two far-apart maps, drawn for each sample: a Gram matrix of rank two with eigenvalues that rounding makes < 0."""
    return 1e3 * (torch.rand(*shape[:2], 1, generator=rng, dtype=torch.float64) < 0.5).double().expand(*shape)


def offset(rng: Generator, *shape: int) -> Tensor:
    """Values that share the offset 10, which a product of the raw values squares."""
    return 10 + random(rng, *shape)


DATA: dict[str, Callable[..., Tensor]] = {
    maker.__name__: maker
    for group in (
        (random, rectified, sparse, near_duplicates, dead, constant, some_dead),
        (outlier, far_outlier, line, two_groups, two_levels, offset),
    )
    for maker in group
}


def _cases() -> Iterator[Case]:
    for n in (1, 2, 3, 13, 31, 33, 64, 97, 100, 127, 128, 129, 257):
        yield Case(f"n{n}", "odd numbers of samples, powers of two and their neighbours", n, num_classes=min(n, 10))
    for f in (1, 7, 8, 33):
        yield Case(f"f{f}", "filters short of, equal to and beyond groups of eight", num_filters=f)
    for d in (1, 2, 49, 65, 1025):
        yield Case(f"d{d}", "features short of and beyond whole vectors", num_filters=3, map_shape=(d,))
    for layout in LAYOUTS:
        for shape in ((), (7,), (3, 5), (2, 3, 5)):
            yield Case(f"{layout}{len(shape)}d", "strides are honoured, not assumed", map_shape=shape, layout=layout)
    for c in (1, 2, 37, 100):
        yield Case(f"c{c}", "one class, two, many, all different", 100, 4, num_classes=c, data="rectified")
    for data, maker in DATA.items():
        yield Case(data, str(maker.__doc__), 128, 4, (4, 4), 10, data=data)
    yield Case("drawn_labels", "classes of any size, some of them empty", 100, 4, balanced=False, num_classes=60)
    for name, mean_distances, data, why in (
        ("tiny_sigma", 1e-3, "random", "K is the identity"),
        ("small_sigma", 0.3, "random", "the smallest width of the default search"),
        ("large_sigma", 10.0, "random", "the largest width of the default search"),
        ("huge_sigma", 1e3, "random", "K is one up to 1e-6"),
        ("narrow_outlier", 1e-4, "outlier", "a width for the bulk, whose distances must survive the outlier"),
        ("narrow_line", 0.05, "line", "a spectrum that falls slowly, then fast"),
    ):
        yield Case(name, why, 128, 4, (4, 4), 10, data=data, mean_distances=mean_distances)


CASES = tuple(replace(case, dtype=dtype) for case in _cases() for dtype in (torch.float32, torch.float64))


@dataclass(frozen=True)
class Layer:
    """The output of a convolution as it is scored: one mini-batch of maps."""

    name: str
    num_samples: int
    num_filters: int
    map_shape: tuple[int, ...]
    count: int = 1  # layers of this shape in the network

    def __str__(self) -> str:
        return self.name

    def case(self, layout: str = "contiguous") -> Case:
        """What the benchmarks time: ten classes, drawn, and rectified values."""
        return Case(
            self.name,
            "the output of a layer after its ReLU",
            self.num_samples,
            self.num_filters,
            self.map_shape,
            num_classes=10,
            layout=layout,
            data="rectified",
            balanced=False,
        )


LENET5 = (Layer("lenet5 conv1", 100, 20, (24, 24)), Layer("lenet5 conv2", 100, 50, (8, 8)))
VGG16 = (  # 32x32 images
    Layer("vgg16 conv1-2", 128, 64, (32, 32), 2),
    Layer("vgg16 conv3-4", 128, 128, (16, 16), 2),
    Layer("vgg16 conv5-7", 128, 256, (8, 8), 3),
    Layer("vgg16 conv8-10", 128, 512, (4, 4), 3),
    Layer("vgg16 conv11-13", 128, 512, (2, 2), 3),
)
RESNET56 = (  # 32x32 images, shortcuts without convolutions
    Layer("resnet56 conv1-19", 128, 16, (32, 32), 19),
    Layer("resnet56 conv20-37", 128, 32, (16, 16), 18),
    Layer("resnet56 conv38-55", 128, 64, (8, 8), 18),
)
RESNET50 = (  # 224x224 images; four of the wide convolutions are shortcuts, and the 3x3 one of a block has its stride
    Layer("resnet50 conv1", 128, 64, (112, 112)),
    Layer("resnet50 stage 1 narrow", 128, 64, (56, 56), 6),
    Layer("resnet50 stage 1 wide", 128, 256, (56, 56), 4),
    Layer("resnet50 stage 2 first", 128, 128, (56, 56)),
    Layer("resnet50 stage 2 narrow", 128, 128, (28, 28), 7),
    Layer("resnet50 stage 2 wide", 128, 512, (28, 28), 5),
    Layer("resnet50 stage 3 first", 128, 256, (28, 28)),
    Layer("resnet50 stage 3 narrow", 128, 256, (14, 14), 11),
    Layer("resnet50 stage 3 wide", 128, 1024, (14, 14), 7),
    Layer("resnet50 stage 4 first", 128, 512, (14, 14)),
    Layer("resnet50 stage 4 narrow", 128, 512, (7, 7), 5),
    Layer("resnet50 stage 4 wide", 128, 2048, (7, 7), 4),
)
ROWS = (Layer("rows", 128, 512, ()),)  # (N, F): one value per filter, as after global pooling
LAYERS = (*LENET5, *VGG16, *ROWS, *RESNET56)  # what is timed on a CPU
