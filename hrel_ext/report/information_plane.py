"""The information plane of a training: how much each layer T keeps of the input X and tells about the labels Y.

I(X; T) and I(T; Y) in bits, on the mini-batch just trained, from the Gram matrices of the input, of the layer's whole
output and of the labels.
"""
# SPDX-License-Identifier: MIT

import math
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hrel_ext._batch import Classes, positive, same_class
from hrel_ext._files import TableFormat, check_tensors
from hrel_ext.collect import check_where, evaluation_mode, score_forward_pass, targets_of
from hrel_ext.entropy import entropy, joint_entropy
from hrel_ext.gram import mean_distance, median_distance
from hrel_ext.scores import versions
from hrel_ext.width import MovingWidth, kernel_width

INPUT_RULES = ("median", "mean", "aligned")
# Where S(X) is above this share of log2 N, hardly two inputs look alike (at the median distance it is about 0.77 at
# N = 100), and if I(X; T) is then closer to S(T) than these bits in every layer, it says nothing about the input.
DEGENERATE_SHARE, DEGENERATE_BITS = 0.95, 0.05
PRODUCT_VALUES = 1 << 18  # of the samples, 2 MiB in float64, are multiplied at a time: they stay in the cache


class DegenerateInputWarning(UserWarning):
    """Hardly two inputs look alike at their kernel width, which is too small: I(X; T) is S(T) in every layer."""


@dataclass(frozen=True)
class PlaneHeader:
    """How an information plane was recorded.

    Attributes:
        layers: layer to the name of its module.
        where: the tensor of a layer that was looked at, as ``where`` of `hrel_ext.collect`.
        every: iterations from one recorded to the next.
        input_sigma: rule of the input's widths: "median", "mean", "aligned" or "given".
        alpha: order of the entropy.
        batch_size: samples in a mini-batch, N.
        stages: stage to the iterations that were over when it began, in the order of time.
        steps: iterations that were over at the end.
        seed: of the training, where it was given.
        versions: of ``hrel_ext`` and ``torch``.
    """

    layers: dict[str, str]
    where: str
    every: int
    input_sigma: str
    alpha: float
    batch_size: int
    stages: dict[str, int]
    steps: int
    seed: int | None
    versions: dict[str, str]


_FILE = TableFormat("an information plane", "hrel_ext.information_plane", schema_version=1, header=PlaneHeader)


@dataclass(frozen=True, eq=False)
class PlaneHistory:
    """A recorded information plane: P points in time, L layers.

    Information and entropies are estimates that are biased upwards: compare them for one batch size only.

    Args:
        iterations: (P,), int64, ascending: the iteration of each point, 1 for the first of the training.
        information: (P, L, 2), float32, bits: I(X; T) and I(T; Y).
        layer_entropy: (P, L), float32, bits: S(T), which neither can exceed.
        input_entropy: (P,), float32, bits: S(X).
        label_entropy: (P,), float32, bits: S(Y), all that can be known about the labels of the mini-batch.
        widths: (P, L), float32: the averaged kernel widths of the layers, in the units of their outputs.
        input_widths: (P,), float32: those of the inputs.
        header: how it was recorded.

    Raises:
        ValueError: tensors that do not fit each other or the header.

    Source: Wickstrom et al., arXiv 1909.11396; Sarvani et al., HRel, doi 10.1016/j.neunet.2021.12.017.
    """

    iterations: Tensor
    information: Tensor
    layer_entropy: Tensor
    input_entropy: Tensor
    label_entropy: Tensor
    widths: Tensor
    input_widths: Tensor
    header: PlaneHeader

    def __post_init__(self) -> None:
        points, layers = len(self.iterations), len(self.header.layers)
        if not points or not layers:
            raise ValueError(f"an information plane must hold a point and a layer, got {points} and {layers}")
        for name, shape in (
            ("iterations", (points,)),
            ("information", (points, layers, 2)),
            ("layer_entropy", (points, layers)),
            ("input_entropy", (points,)),
            ("label_entropy", (points,)),
            ("widths", (points, layers)),
            ("input_widths", (points,)),
        ):
            if (got := tuple(getattr(self, name).shape)) != shape:
                raise ValueError(f"{name} must have shape {shape} for {points} points and {layers} layers, got {got}")
        times = [0, *self.iterations.tolist()]
        if any(a >= b for a, b in pairwise(times)):
            raise ValueError(f"iterations must be > 0 and ascending, got {times[1:]}")
        starts = list(self.header.stages.values())
        if not starts or starts != sorted(starts) or not 0 <= starts[0] < times[1]:
            raise ValueError(f"stages must begin in order, the first before the first point, got {self.header.stages}")
        if times[-1] > self.header.steps:
            raise ValueError(f"steps must be at least the last iteration, {times[-1]}, got {self.header.steps}")

    def __repr__(self) -> str:
        return f"PlaneHistory({len(self.iterations)} points; {', '.join(self.header.layers)})"

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, in the order of the tensors."""
        return tuple(self.header.layers)

    @property
    def stages(self) -> dict[str, slice]:
        """Stage to its points; without the stages that have none."""
        starts = torch.tensor([*self.header.stages.values(), self.header.steps])
        edges = torch.searchsorted(self.iterations, starts, right=True).tolist()  # the first point after each start
        spans = zip(self.header.stages, pairwise(edges), strict=True)
        return {name: slice(first, end) for name, (first, end) in spans if first < end}

    def final(self, stage: str, last: int = 10) -> Tensor:
        """Where the layers are at the end of a stage: the mean of its last points.

        Args:
            stage: a key of `stages`.
            last: how many points; all where there are fewer.

        Returns:
            (L, 2), bits: I(X; T) and I(T; Y).

        Raises:
            ValueError: a stage without points, or ``last`` below 1.
        """
        if stage not in self.stages:
            raise ValueError(f"stage must be one with points ({', '.join(self.stages)}), got {stage!r}")
        if last < 1:
            raise ValueError(f"last must be at least 1, got {last}")
        return self.information[self.stages[stage]][-last:].mean(dim=0)

    def moved(self, before: str, after: str, last: int = 10) -> Tensor:
        """How far each layer moved in the plane from the end of one stage to the end of another.

            |p_after - p_before|,   p = (I(X; T), I(T; Y)) the mean of the last points of a stage, see `final`

        The number for a whole plane is the mean over its layers.

        Args:
            before, after: keys of `stages`.
            last: how many points.

        Returns:
            (L,), bits.

        Raises:
            ValueError: as `final`.
        """
        return (self.final(after, last) - self.final(before, last)).norm(dim=1)

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file with a JSON header, which appears whole or not at all.

        Args:
            path: of the file, say ``plane.safetensors``; a file that is there is replaced.

        Raises:
            ImportError: safetensors is not installed.
        """
        _FILE.save(path, self.header, {name: getattr(self, name) for name in _DTYPES})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PlaneHistory":
        """Read a file that `save` wrote, here or of an `InformationPlane`.

        Args:
            path: of the file.

        Returns:
            The same history, bit for bit.

        Raises:
            ImportError: safetensors is not installed.
            FileNotFoundError: there is no such file.
            ValueError: the file is cut off, something else, of another schema, or does not fit its own header.
        """
        return _FILE.load(path, cls._from_parts)

    @classmethod
    def _from_parts(cls, header: PlaneHeader, tensors: dict[str, Tensor]) -> "PlaneHistory":
        check_tensors(tensors, _DTYPES)
        return cls(**tensors, header=header)


_DTYPES = {  # of the tensors of a file
    "iterations": torch.int64,
    **dict.fromkeys(("information", "layer_entropy", "input_entropy", "label_entropy"), torch.float32),
    **dict.fromkeys(("widths", "input_widths"), torch.float32),
}


class _Layer(NamedTuple):
    """One layer and one mini-batch."""

    gram: Tensor  # (N, N) float32
    width: Tensor  # () float32 on the CPU


class InformationPlane:
    """Records the information plane of a network while it trains, in any training loop.

        I(X; T) = S(K_X) + S(K_T) - S(K_X o K_T),   I(T; Y) = S(K_T) + S(K_Y) - S(K_T o K_Y)

    with Gaussian Gram matrices K_ij = exp(-|x_i - x_j|^2 / sigma^2) of the inputs and of the layer's whole output, and
    K_Y 1 within a class and 0 across. Note sigma^2, not 2 sigma^2: HRel's convention. The width of a layer is that of
    `hrel_ext.kernel_width`, averaged over the recorded mini-batches as in `hrel_ext.MovingWidth` (0.9 of the past).
    Departs from HRel in the input's width: a fixed 8 suits MNIST in [0, 1], but between normalised colour images every
    distance is many times that, K_X is the identity, and I(X; T) is S(T) whatever the layer does.

    What is recorded changes nothing in the training: no weight, no statistic of a batch norm, no random number.

    Args:
        model: called as ``model(inputs)``. Its modules are found by their names each time, so pruning may replace them.
        layers: names of the modules to look at, or a mapping from names in the result to modules or their names; None
            takes every ``nn.Conv2d`` and, with ``where`` "conv", every ``nn.Linear``.
        where: the tensor of a layer, as for `hrel_ext.collect`: "conv" is the module's own output; "bn", "relu" and
            "pool" are what follows a convolution.
        every: iterations from one recorded to the next; the first of every stage is recorded.
        input_sigma: kernel width of the inputs, a number or a rule for each mini-batch, averaged like the others:
            "median" or "mean", the distance between two inputs; "aligned", the rule of the layers.
        alpha: order of the entropy; HRel's published code uses 1.
        seed: of the training, for the file; nothing here is random.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value.

    Source: Sarvani et al., HRel, Neural Networks 147 (2022), doi 10.1016/j.neunet.2021.12.017, and its published code,
    after Wickstrom et al., arXiv 1909.11396.

    Example:
        >>> import torch
        >>> from hrel_ext.report import InformationPlane
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> plane = InformationPlane(model, every=10)
        >>> for _ in range(30):
        ...     labels = torch.randint(0, 3, (20,))
        ...     inputs = torch.randn(20, 4) + labels[:, None]
        ...     loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     _ = plane.record(inputs, labels)
        >>> plane.history, plane.history.iterations.tolist()
        (PlaneHistory(3 points; 0, 2), [1, 11, 21])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Mapping[str, str | nn.Module] | Iterable[str] | None = None,
        where: str = "conv",
        every: int = 10,
        input_sigma: float | str = "median",
        alpha: float = 1.01,
        seed: int | None = None,
    ) -> None:
        for name, value, least in (("every", every, 1), ("seed", seed, 0)):
            if name == "seed" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        if isinstance(input_sigma, str):
            if input_sigma not in INPUT_RULES:
                rules = ", ".join(f'"{rule}"' for rule in INPUT_RULES)
                raise ValueError(f"input_sigma must be a positive number or one of {rules}, got {input_sigma!r}")
        elif not isinstance(input_sigma, Real):
            raise TypeError(f"input_sigma must be a positive number or a rule, got {type(input_sigma).__name__}")
        else:
            input_sigma = positive("input_sigma", input_sigma)
        if layers is None and where == "conv":
            kinds = (nn.Conv2d, nn.Linear)
            layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
        targets = targets_of(model, layers)
        check_where(where, targets)
        names = {module: name for name, module in model.named_modules()}
        if strangers := [name for name, module in targets.items() if module not in names]:
            raise ValueError(f"layers must be modules of the model, got others for {', '.join(strangers)}")
        self._model = model
        self._layers = {name: names[module] for name, module in targets.items()}
        self._where = where
        self._every = every
        self._input_sigma = input_sigma
        self._alpha = positive("alpha", alpha)
        self._seed = seed
        self._widths = {name: MovingWidth() for name in targets}
        self._input_width = MovingWidth()
        self._stages: dict[str, int] = {}
        self._steps = 0
        self._batch_size = 0  # N of the first mini-batch
        self._left_out = False  # whether the last mini-batch was smaller
        self._warned = False
        self._points: dict[str, list[Tensor]] = {name: [] for name in _DTYPES}

    def begin(self, stage: str) -> None:
        """Begin a named stage, such as "baseline" or "cycle 1"; what is recorded before the first one is "training".

        Args:
            stage: a name that no stage had before.

        Raises:
            ValueError: an empty name, or one that was there.
        """
        if not isinstance(stage, str) or not stage or stage in self._stages:
            known = ", ".join(self._stages) or "none"
            raise ValueError(
                f"stage must be a new name, not empty and not one of those so far ({known}), got {stage!r}"
            )
        self._stages[stage] = self._steps

    def record(self, inputs: Tensor, labels: Tensor) -> bool:
        """Count one iteration, and look at the network if its turn has come; to be called after each optimizer step.

        The network runs once more on the mini-batch, in eval mode and without gradients; the mode of every module is
        restored and every hook removed, also after an error. A smaller mini-batch at the end of an epoch is not
        recorded, since the estimate depends on N; the next one is, in its place.

        Args:
            inputs: (N, ...), floating point, the mini-batch just trained.
            labels: (N,), integer class ids >= 0.

        Returns:
            Whether this iteration was recorded.

        Raises:
            TypeError, ValueError: a wrong type or shape, a mini-batch larger than the first or two smaller ones in
            succession, a layer that ran twice or never, or an output that is not finite; named.

        Warns:
            DegenerateInputWarning: hardly two inputs look alike at this ``input_sigma``, S(X) > 0.95 log2 N, and
            I(X; T) is S(T) to within 0.05 bits in every layer. Once.
        """
        if not isinstance(inputs, Tensor) or not inputs.dtype.is_floating_point or inputs.dim() < 2:
            got = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
            raise TypeError(f"inputs must be a floating point tensor of shape (N, ...), got {got}")
        classes = Classes(labels)
        if len(inputs) != len(labels):
            raise ValueError(
                f"labels must have shape (N,) = ({len(inputs)},) to match inputs of shape {tuple(inputs.shape)}, "
                f"got {tuple(labels.shape)}"
            )
        if int(classes.smallest) < 0:
            raise ValueError(f"labels must be class ids >= 0, got {int(classes.smallest)}")
        is_full = self._check_size(len(labels))
        self._steps += 1
        if not self._stages:
            self._stages["training"] = 0
        if not is_full or self._steps < self._next_step():
            return False
        device = next((p.device for p in self._model.parameters()), inputs.device)
        with torch.no_grad():
            self._look(inputs.to(device), labels.to(device))
        return True

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages that have begun."""
        return tuple(self._stages)

    @property
    def num_points(self) -> int:
        """Iterations recorded so far."""
        return len(self._points["iterations"])

    @property
    def history(self) -> PlaneHistory:
        """All points so far. Raises ValueError before the first one."""
        times = self._points["iterations"]
        if not times:
            raise ValueError("an information plane must hold at least one recorded iteration, got none")
        header = PlaneHeader(
            layers=dict(self._layers),
            where=self._where,
            every=self._every,
            input_sigma=self._input_sigma if isinstance(self._input_sigma, str) else "given",
            alpha=self._alpha,
            batch_size=self._batch_size,
            stages=dict(self._stages),
            steps=self._steps,
            seed=self._seed,
            versions=versions(),
        )
        return PlaneHistory(**{name: torch.stack(points) for name, points in self._points.items()}, header=header)

    def save(self, path: str | os.PathLike) -> None:
        """Write `history` to one file, as `PlaneHistory.save` does.

        Args:
            path: of the file, say ``plane.safetensors``; a file that is there is replaced.

        Raises:
            ImportError: safetensors is not installed.
            ValueError: nothing was recorded.
        """
        self.history.save(path)

    @classmethod
    def resume(cls, model: nn.Module, path: str | os.PathLike) -> "InformationPlane":
        """Go on with a saved plane: its settings, points, stages, averaged widths and count of iterations.

        Args:
            model: with the modules that the plane names.
            path: of a file that `save` wrote.

        Returns:
            A recorder that gives what the one that was saved would have given, bit for bit.

        Raises:
            ImportError, FileNotFoundError, ValueError: as `PlaneHistory.load`; also for a model without these modules.
        """
        history = PlaneHistory.load(path)
        header = history.header
        plane = cls(
            model,
            layers=header.layers,
            where=header.where,
            every=header.every,
            input_sigma=history.input_widths[-1].item() if header.input_sigma == "given" else header.input_sigma,
            alpha=header.alpha,
            seed=header.seed,
        )
        averages = zip(
            [plane._input_width, *plane._widths.values()], [history.input_widths, *history.widths.T], strict=True
        )
        for average, widths in averages:
            average.update(widths[-1])
        plane._stages, plane._steps, plane._batch_size = dict(header.stages), header.steps, header.batch_size
        plane._points = {name: list(getattr(history, name)) for name in _DTYPES}
        return plane

    def _check_size(self, size: int) -> bool:
        """Whether a mini-batch has as many samples as the first."""
        first = self._batch_size = self._batch_size or size
        if size > first or (size < first and self._left_out):
            raise ValueError(
                f"mini-batches must all have {first} samples like the first, the last of an epoch excepted, got "
                f"{size}{' after another smaller one' if size < first else ''}"
            )
        self._left_out = size < first
        return size == first

    def _next_step(self) -> int:
        begun = list(self._stages.values())[-1]
        times = self._points["iterations"]
        return int(times[-1]) + self._every if times and times[-1] > begun else begun + 1

    def _look(self, inputs: Tensor, labels: Tensor) -> None:
        """Add one point, of inputs (N, ...) and labels (N,) on the device of the model."""
        targets = targets_of(self._model, self._layers)
        with evaluation_mode(self._model):
            look = partial(self._look_at_layer, labels=labels)
            layers = score_forward_pass(self._model, inputs, targets, self._where, look)
        with torch.autocast(inputs.device.type, enabled=False):
            width = self._width_of_input(inputs, labels)
            grams = torch.stack([layer.gram for layer in layers.values()])  # (L, N, N)
            others = torch.stack([_gram(inputs, width), same_class(labels).to(grams)])  # (2, N, N), of X and Y
            own = entropy(torch.cat([others, grams]), alpha=self._alpha)  # (2 + L,)
            joint = joint_entropy(grams, others[:, None], alpha=self._alpha)  # (2, L)
        information = own[:2, None] + own[2:] - joint  # (2, L)
        gap = (own[2:] - information[0]).max()  # ()
        self._check_input_width(width.item(), own[0].item(), gap.item(), len(labels))
        point = {
            "iterations": torch.tensor(self._steps),
            "information": information.T,
            "layer_entropy": own[2:],
            "input_entropy": own[0],
            "label_entropy": own[1],
            "widths": torch.stack([layer.width for layer in layers.values()]),
            "input_widths": width,
        }
        for name, value in point.items():
            self._points[name].append(value.cpu())

    def _look_at_layer(self, name: str, maps: object, labels: Tensor) -> _Layer:
        if not isinstance(maps, Tensor) or maps.dim() < 2:
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(f"the output of layer {name!r} must be a tensor of shape (N, F, ...), got {got}")
        with torch.autocast(maps.device.type, enabled=False):
            try:
                # kernel_width takes up to three spatial dimensions, and the layer's distances need none.
                found = kernel_width(maps if maps.dim() <= 5 else maps.flatten(1), labels)
            except ValueError as error:  # it does not know which layer
                raise ValueError(f"layer {name!r}: {error}") from error
            width = self._widths[name].update(found.float().cpu())
            return _Layer(_gram(maps, width), width)

    def _width_of_input(self, inputs: Tensor, labels: Tensor) -> Tensor:
        samples, rule = inputs.flatten(1), self._input_sigma  # (N, D)
        if not isinstance(rule, str):
            found = torch.tensor(rule)
        elif rule == "aligned":
            found = kernel_width(samples, labels)
        else:
            found = median_distance(samples) if rule == "median" else mean_distance(samples)
            if not found > 0:
                raise ValueError(f'input_sigma="{rule}" must find a {rule} distance > 0 between the inputs, got 0')
        return self._input_width.update(found.float().cpu())

    def _check_input_width(self, width: float, input_entropy: float, gap: float, num_samples: int) -> None:
        """Of one mini-batch: ``gap`` is the largest S(T) - I(X; T) of a layer."""
        most = math.log2(num_samples)
        if input_entropy > DEGENERATE_SHARE * most and gap < DEGENERATE_BITS and not self._warned:
            self._warned = True
            warnings.warn(
                f"hardly two inputs look alike at the width {width:.4g}: S(X) = {input_entropy:.3f} of log2 N = "
                f"{most:.3f} bits, so I(X; T) is S(T) to within {gap:.3f} bits in every layer, whatever it keeps of "
                'the input; take a wider input_sigma, say "median"',
                DegenerateInputWarning,
                stacklevel=4,
            )


def _gram(samples: Tensor, sigma: Tensor) -> Tensor:
    """exp(-|x_i - x_j|^2 / sigma^2) of samples (N, ...): (N, N), float32.

    By products of centred samples in float64, which take a tenth of the time of the differences in `hrel_ext.gram` and
    lose 1e-16 of the squared norms: nothing beside the square of a width that is of the order of the distances.
    """
    flat = samples.flatten(1)  # (N, D)
    products = flat.new_zeros(len(flat), len(flat), dtype=torch.float64)  # (N, N)
    for part in flat.split(max(1, PRODUCT_VALUES // len(flat)), dim=1):
        part = part.to(torch.float64, copy=True)
        part -= part.mean(dim=0)
        products.addmm_(part, part.mT)
    norms = products.diagonal()  # (N,)
    squared = (norms[:, None] + norms - 2 * products).clamp_(min=0)  # (N, N), 0 on the diagonal
    return torch.exp(-squared / sigma.double().square().to(squared.device)).float()
