"""Criteria: what ranks the filters of a layer; each a small object with a name. The lowest score goes first.

All criteria have one interface, `Criterion.scores`, so that a comparison between them differs in nothing else.
"""
# SPDX-License-Identifier: MIT

import inspect
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain
from typing import Any, ClassVar, cast

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hrel_ext import _ranks
from hrel_ext._batch import flatten_maps
from hrel_ext.collect import (
    Batch,
    check_where,
    collect,
    evaluation_mode,
    full_batches,
    refusals,
    score_forward_pass,
    targets_of,
)
from hrel_ext.pruning.groups import traceable
from hrel_ext.scores import LayerScores, OverBatches, Rows, Scores
from hrel_ext.selection import select_filters

Layers = Mapping[str, str | nn.Module] | Iterable[str] | None
Progress = Callable[[Iterable[Batch]], Iterable[Batch]] | None


@dataclass(frozen=True, eq=False)
class FilterScores(OverBatches):
    """The scores of one layer's filters by some criterion; the properties of `hrel_ext.LayerScores` that all have.

    Attributes:
        per_batch: (B, F), float64 on the CPU: one row per mini-batch, or a single one where mini-batches are not
            scored one by one; fewer where there are ``moments``.
        moments: (3, F), float64: as for `hrel_ext.LayerScores`.

    Example:
        >>> scores = FilterScores(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
        >>> scores.mean.tolist(), [round(value, 3) for value in scores.std.tolist()]
        ([2.0, 2.0], [1.414, 0.0])
    """

    per_batch: Tensor
    moments: Tensor | None = None


class Criterion(ABC):
    """A rule that scores filters. Subclasses say how; this class knows when a score is stale and what is refused.

    Scores are kept and handed out again as long as the model is the same: its modules, and every value of its
    parameters and buffers, which are compared with a copy of theirs. So they are never stale, and as many calls as one
    likes cost one pass over the data between two changes of the weights.

    Options and data are those it was made with: for others, make another. A criterion holds no reference to a model, so
    both can be copied.

    Attributes:
        name: key in `CRITERIA`.
        unscored: layer to the reason why the last scoring left it out; only where no layers were named.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self.unscored: Mapping[str, str] = {}
        self._made_for: _Fingerprint | None = None
        self._table: Mapping[str, FilterScores | LayerScores] = {}
        self._scores: Mapping[str, Tensor] = {}

    def scores(self, model: nn.Module, layers: Layers = None) -> Mapping[str, Tensor]:
        """Score the filters of some layers.

        Args:
            model: on any device; nothing of it is changed, modes and gradients included.
            layers: names of convolutions or linear layers; or a mapping from these names to the modules (or their
                names) whose output is scored for them, one channel per filter, say ``{"conv1": "pool1"}``; None takes
                every ``nn.Conv2d`` that the criterion can score, and says in ``unscored`` which it cannot, and why.

        Returns:
            Layer to its scores (F,), float64 on the CPU, low goes first. The same object as long as nothing changed.

        Raises:
            TypeError, ValueError: a layer that is named and cannot be scored, scores that are not finite, with the
            layer and the filter.
        """
        self.table(model, layers)
        return self._scores

    def table(self, model: nn.Module, layers: Layers = None) -> Mapping[str, FilterScores | LayerScores]:
        """`scores` with their rows, one per mini-batch: ``per_batch`` (B, F), ``mean`` and ``std`` (F,).

        Args:
            model, layers: as for `scores`.

        Returns:
            Layer to `FilterScores`, or what the criterion has instead of them, say `hrel_ext.LayerScores`.

        Raises:
            TypeError, ValueError: as `scores`.
        """
        names = {module: name for name, module in model.named_modules()}
        targets = targets_of(model, layers)
        layers_of = {name: model.get_submodule(name) for name in targets if name in names.values()}
        for name in targets:
            if _num_filters(layers_of.get(name)) is None:
                raise ValueError(f"layers must name convolutions or linear layers of the model, got {name!r}")
        request = None if layers is None else tuple((n, names.get(m, id(m))) for n, m in targets.items())
        if self._made_for is None or not self._made_for.fits(model, request):
            self._made_for = None
            unscored: dict[str, str] = {}
            table = self._measure(model, targets, unscored if layers is None else None)
            for name, scores in table.items():
                _check(name, scores, cast(int, _num_filters(layers_of[name])))
            self.unscored = unscored
            self._table = dict(table)
            self._scores = {name: scores.mean.double() for name, scores in table.items()}
            self._made_for = _Fingerprint(model, request)
        return self._table

    @property
    def options(self) -> Mapping[str, object]:
        """What it was made with, but for data and progress: JSON values, and the types of other objects."""
        names = sorted(inspect.signature(type(self)).parameters.keys() - {"batches", "progress"})
        return {name: _as_json(getattr(self, name, None)) for name in names}

    @abstractmethod
    def _measure(
        self, model: nn.Module, targets: dict[str, nn.Module], unscored: dict[str, str] | None
    ) -> Mapping[str, FilterScores | LayerScores]:
        """Score layers afresh.

        Args:
            model: of `scores`.
            targets: layer to the module whose output is scored for it.
            unscored: takes the layers that cannot be scored, with the reason; None where such a layer is an error.
        """


class _Fingerprint:
    """A model as it was when it was scored. Version counters are no help: fused optimizers leave them as they are."""

    def __init__(self, model: nn.Module, request: object) -> None:
        self._text, self._request = repr(model), request
        self._tensors = {name: tensor.clone() for name, tensor in self._contents(model)}

    def fits(self, model: nn.Module, request: object) -> bool:
        """Whether the model is still the same, and so is what was asked for. NaN counts as a change."""
        contents = dict(self._contents(model))
        return (
            request == self._request
            and contents.keys() == self._tensors.keys()
            and all(_same(tensor, self._tensors[name]) for name, tensor in contents.items())
            and repr(model) == self._text
        )

    @staticmethod
    def _contents(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            yield name, tensor.detach()


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _as_json(value: object) -> object:
    if isinstance(value, Tensor):
        return value.tolist()
    plain = value is None or isinstance(value, str | int | float)
    return value if plain else f"{type(value).__module__}.{type(value).__qualname__}"


def _num_filters(layer: nn.Module | None) -> int | None:
    """The output channels of a convolution or linear layer; None for anything else."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.out_channels
    return layer.out_features if isinstance(layer, nn.Linear) else None


def _check(name: str, scores: FilterScores | LayerScores, num_filters: int) -> None:
    if scores.per_batch.shape[1] != num_filters:
        raise ValueError(
            f"what is scored for {name!r} must have one channel per filter ({num_filters}), "
            f"got {scores.per_batch.shape[1]}"
        )
    thinned = scores.moments is not None  # then not every mini-batch has its row
    rows = scores.mean[None] if thinned else scores.per_batch
    if bad := (~rows.isfinite()).nonzero().tolist():
        batch, f = bad[0]
        raise ValueError(
            f"scores must be finite, got {rows[batch, f].item()} for filter {f} of layer {name!r}"
            + (f" in batch {batch}" if len(rows) > 1 else "")
        )


class _WeightCriterion(Criterion):
    """Scores a layer by itself, without data.

    Args:
        batches: not read; there so that all criteria are made alike.
    """

    def __init__(self, batches: Iterable[Batch] | None = None) -> None:
        super().__init__()

    def _measure(
        self, model: nn.Module, targets: dict[str, nn.Module], unscored: dict[str, str] | None
    ) -> Mapping[str, FilterScores | LayerScores]:
        with torch.no_grad():
            rows = {name: self._of_layer(name, model.get_submodule(name)) for name in targets}
        return {name: FilterScores(row.double().cpu()[None]) for name, row in rows.items()}

    @abstractmethod
    def _of_layer(self, name: str, layer: Any) -> Tensor:
        """(F,)."""


class Random(_WeightCriterion):
    """Uniform random numbers: the floor that every other criterion must beat.

    u_f of U(0, 1), fixed by the seed, the name of the layer and its number of filters, so that it repeats, and a layer
    that was pruned is drawn anew.

    Args:
        batches: not read.
        seed: of the numbers. Take several: one draw tells little.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 3, 1))
        >>> torch.equal(Random(seed=4).scores(model)["0"], Random(seed=4).scores(model)["0"])
        True
    """

    name = "random"

    def __init__(self, batches: Iterable[Batch] | None = None, *, seed: int = 0) -> None:
        super().__init__(batches)
        self.seed = seed

    def _of_layer(self, name: str, layer: Any) -> Tensor:
        num_filters = cast(int, _num_filters(layer))
        # Not hash(), which is salted in every process.
        seed = zlib.crc32(f"{self.seed} {name} {num_filters}".encode())
        return torch.rand(num_filters, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class L1Norm(_WeightCriterion):
    """Sum of the absolute weights of a filter, |w_f|_1; no bias.

    Args:
        batches: not read.

    Source: H. Li, A. Kadav, I. Durdanovic, H. Samet, H. P. Graf, ICLR 2017, arXiv 1608.08710.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0, -4.0], [0.0, 5.0]])[..., None, None])
        >>> L1Norm().scores(model)["0"].tolist()
        [7.0, 5.0]
    """

    name = "l1"
    _order: ClassVar[int] = 1

    def _of_layer(self, name: str, layer: Any) -> Tensor:
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            raise ValueError(f"layers must not name transposed convolutions, got {name!r}")  # filters are columns there
        return torch.linalg.vector_norm(layer.weight.double().flatten(1), ord=self._order, dim=1)


class L2Norm(L1Norm):
    """Euclidean norm of the weights of a filter, |w_f|_2; no bias.

    Args:
        batches: not read.

    Source: Y. He, G. Kang, X. Dong, Y. Fu, Y. Yang, IJCAI 2018, arXiv 1808.06866.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0, -4.0], [0.0, 5.0]])[..., None, None])
        >>> L2Norm().scores(model)["0"].tolist()
        [5.0, 5.0]
    """

    name = "l2"
    _order = 2


class _DataCriterion(Criterion):
    """Needs inputs of the network.

    Args:
        batches: pairs of inputs (N, ...) and integer labels (N,) that can be gone through again and again.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        super().__init__()
        if isinstance(batches, Iterator):
            raise ValueError(f"batches must be re-iterable, got {type(batches).__name__}, which one pass uses up")
        self.batches = batches

    def _sample(self, batches: Iterator[Batch]) -> tuple[Tensor, Iterator[Batch]]:
        """The first sample (1, ...) of a pass, and the pass, of which it is not taken away."""
        first = next(batches, None)
        if first is None:
            raise ValueError("batches must hold at least one mini-batch, got none")
        return first[0][:1], chain([first], batches)


class _MapCriterion(_DataCriterion):
    """Scores each layer by its maps in each mini-batch.

    Several ranks of torch.distributed share the mini-batches, and all have the scores of all of them.

    Args:
        batches, where, progress: as for `HRel`.
    """

    _one_by_one: ClassVar[bool] = True  # whether a mini-batch is scored without the others

    def __init__(self, batches: Iterable[Batch], *, where: str = "conv", progress: Progress = None) -> None:
        super().__init__(batches)
        self.where, self.progress = where, progress

    def _measure(
        self, model: nn.Module, targets: dict[str, nn.Module], unscored: dict[str, str] | None
    ) -> Mapping[str, FilterScores | LayerScores]:
        check_where(self.where, targets)
        batches = _ranks.shared(self.batches) if self._one_by_one else self.batches
        batches = iter(self.progress(batches) if self.progress else batches)
        if unscored is not None:
            sample, batches = self._sample(batches)
            with torch.no_grad(), evaluation_mode(model):
                # The first mini-batch is that of rank 0, the others may not have read it.
                unscored |= _ranks.from_first(lambda: refusals(model, sample.to(_device(model)), targets, self.where))
            targets = {name: module for name, module in targets.items() if name not in unscored}
            if not targets:
                raise ValueError(f"no layer can be scored: {_reasons(unscored)}")
        return self._of_batches(model, batches, targets)

    def _of_batches(
        self, model: nn.Module, batches: Iterator[Batch], targets: dict[str, nn.Module]
    ) -> Mapping[str, FilterScores | LayerScores]:
        table, count = {name: Rows() for name in targets}, 0
        device = _device(model)
        with torch.no_grad(), evaluation_mode(model):
            for count, (inputs, labels) in enumerate(full_batches(batches), start=1):
                if not _ranks.is_own(count - 1):
                    continue
                for name, row in self._of_batch(model, inputs.to(device), labels.to(device), targets).items():
                    table[name].append(count - 1, row)
        return {name: FilterScores(*rows.together(count)) for name, rows in table.items()}

    def _of_batch(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, targets: dict[str, nn.Module]
    ) -> dict[str, Tensor]:
        return score_forward_pass(model, inputs, targets, self.where, self._of_output)

    def _of_output(self, name: str, output: Tensor) -> Tensor:
        _check_maps(name, output)
        return self._of_maps(name, output).cpu()

    def _of_maps(self, name: str, maps: Tensor) -> Tensor:
        """The scores (F,) that the maps (N, F, ...) of one mini-batch give, float64."""
        raise NotImplementedError


class _SetCriterion(_MapCriterion):
    """Scores each layer by its maps in all mini-batches at once, which every rank of several goes through.

    Args:
        batches, where, progress: as for `HRel`.
    """

    _one_by_one = False

    def _of_batches(
        self, model: nn.Module, batches: Iterator[Batch], targets: dict[str, nn.Module]
    ) -> Mapping[str, FilterScores | LayerScores]:
        kept: dict[str, list[Any]] = {name: [] for name in targets}
        device = _device(model)
        with torch.no_grad(), evaluation_mode(model):
            for inputs, labels in full_batches(batches):
                for name, part in self._of_batch(model, inputs.to(device), labels.to(device), targets).items():
                    kept[name].append(part)
        return {name: self._together(parts) for name, parts in kept.items()}

    def _together(self, parts: list[Any]) -> FilterScores:
        """The scores, from what `_of_batch` gave of each mini-batch."""
        raise NotImplementedError


def _check_maps(name: str, maps: object) -> None:
    """Refuse maps that are no tensor (N, F, ...) or not finite, with the layer and the filter."""
    if not isinstance(maps, Tensor) or maps.dim() < 2:
        got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(f"the output of layer {name!r} must be a tensor of shape (N, F, ...), got {got}")
    finite = maps.isfinite().transpose(0, 1).flatten(1).all(1)  # (F,)
    if not finite.all():
        raise ValueError(f"layer {name!r}: maps must be finite, filter {int(finite.int().argmin())} holds NaN or Inf")


class BatchNormScale(_DataCriterion):
    """Absolute scale |gamma_f| of the batch norm that takes the output of the convolution.

    The first sample of the first mini-batch goes through the network once, to see which batch norm follows which
    convolution; nothing else is read of the data. A convolution that is not followed by exactly one batch norm with
    weights, directly, has no such score.

    Args:
        batches: pairs of inputs and labels.

    Source: Z. Liu, J. Li, Z. Shen, G. Huang, S. Yan, C. Zhang, ICCV 2017, arXiv 1708.06519; not its training.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        >>> _ = model[1].weight.data.copy_(torch.tensor([-2.0, 0.5]))
        >>> BatchNormScale([(torch.zeros(3, 1, 4, 4), torch.tensor([0, 1, 1]))]).scores(model)["0"].tolist()
        [2.0, 0.5]
    """

    name = "bn_scale"

    def _measure(
        self, model: nn.Module, targets: dict[str, nn.Module], unscored: dict[str, str] | None
    ) -> Mapping[str, FilterScores | LayerScores]:
        layers = {name: model.get_submodule(name) for name in targets}
        sample, _ = self._sample(iter(self.batches))
        norms = _following_norms(model, sample.to(_device(model)), layers)
        lacking = {}
        for name, found in norms.items():
            if len(found) != 1 or found[0].weight is None:
                what = f"{len(found)} batch norms" if len(found) != 1 else "a batch norm without weights"
                lacking[name] = f"is followed by {what}"
        if unscored is not None:
            unscored |= lacking
        if lacking and (unscored is None or len(lacking) == len(targets)):
            raise ValueError(f"layers must each be followed by one batch norm with weights: {_reasons(lacking)}")
        return {
            name: FilterScores(found[0].weight.detach().abs().double().cpu()[None])
            for name, found in norms.items()
            if name not in lacking
        }


def _following_norms(model: nn.Module, inputs: Tensor, layers: dict[str, nn.Module]) -> dict[str, list[Any]]:
    """Layer to the batch norms that take its very output."""
    outputs: list[tuple[str, Tensor]] = []  # kept, so that no other tensor gets the same identity
    norms: dict[str, list[Any]] = {name: [] for name in layers}

    def take(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for name, output in outputs:
            if inputs[0] is output and module not in norms[name]:
                norms[name].append(module)

    hooks = [
        layer.register_forward_hook(lambda module, inputs, output, name=name: outputs.append((name, output)))
        for name, layer in layers.items()
    ] + [m.register_forward_pre_hook(take) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    try:
        with torch.no_grad(), evaluation_mode(model):
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return norms


class ActivationVariance(_MapCriterion):
    """Variance of a filter's maps x_1 .. x_N over the samples, summed over the map: sum_n |x_n - mean(x)|^2 / N.

    It is half the mean squared distance between two maps, the quantity that the Gram matrix of HRel is made of, and so
    the control that HRel must be compared with. The score is the mean over the mini-batches.

    Args:
        batches, where, progress: as for `HRel`.

    Source: the definition of the total variance.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([1.0, -3.0])[:, None, None, None])
        >>> images = torch.tensor([0.0, 2.0])[:, None, None, None]
        >>> ActivationVariance([(images, torch.tensor([0, 1]))]).scores(model)["0"].tolist()
        [1.0, 9.0]
    """

    name = "variance"

    def _of_maps(self, name: str, maps: Tensor) -> Tensor:
        maps = maps.double()
        return flatten_maps((maps - maps.mean(0)).square()).mean(0).sum(1)  # (N, F, D) to (F,)


class HRank(_MapCriterion):
    """Mean rank of a filter's maps, as matrices H x W, over all samples: sum_n rank(x_n) / N.

    Args:
        batches, where, progress: as for `HRel`; HRank's code scores after ReLU.

    Source: M. Lin et al., CVPR 2020, arXiv 2002.10179. The rank counts singular values above the largest one times
    max(H, W) times the machine precision, as torch's default does.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
        >>> images = torch.stack((torch.eye(3), torch.ones(3, 3)))[:, None]
        >>> HRank([(images, torch.tensor([0, 1]))]).scores(model)["0"].tolist()
        [2.0]
    """

    name = "hrank"

    def _of_maps(self, name: str, maps: Tensor) -> Tensor:
        if maps.dim() != 4:
            raise ValueError(f"layer {name!r}: maps must have shape (N, F, H, W) for a rank, got {tuple(maps.shape)}")
        maps = maps if maps.dtype == torch.float64 else maps.float()
        return torch.linalg.matrix_rank(maps).double().mean(0)


class Taylor(_MapCriterion):
    """First-order estimate of how the loss changes when a filter's map is set to 0.

        score_f = 1/N sum_n | 1/D sum_d  dL_n/dx_nfd  x_nfd |,   L_n the cross-entropy of sample n.

    Gradients are taken with respect to the maps, in eval mode, so frozen parameters do not matter, and no ``.grad`` is
    touched. All maps of one mini-batch are held until its backward pass.

    Args:
        batches, where, progress: as for `HRel`.

    Source: P. Molchanov, S. Tyree, T. Karras, T. Aila, J. Kautz, ICLR 2017, arXiv 1611.06440, equation 8, without the
    normalisation of each layer, which changes no order within it.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten())
        >>> _ = model[0].weight.data.copy_(torch.tensor([1.0, 0.0])[:, None, None, None])
        >>> scores = Taylor([(torch.ones(1, 1, 1, 1), torch.tensor([0]))]).scores(model)["0"]
        >>> [round(value, 4) for value in scores.tolist()]  # the gradient is softmax - one-hot
        [0.2689, 0.0]
    """

    name = "taylor"

    def _of_batch(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, targets: dict[str, nn.Module]
    ) -> dict[str, Any]:
        if not inputs.is_floating_point():
            raise TypeError(f"inputs must be floating point to have gradients, got {inputs.dtype}")
        maps: dict[str, Tensor] = {}
        scores: dict[str, Tensor] = {}
        outputs: list[Tensor] = []

        def keep(name: str, output: Tensor) -> None:
            _check_maps(name, output)
            maps[name] = output.detach().clone()  # an operation in place may follow
            scores[name] = torch.zeros(output.shape[1], dtype=torch.float64)  # stays where the loss ignores the layer
            output.register_hook(partial(weigh, name))

        def weigh(name: str, gradient: Tensor) -> None:
            products = flatten_maps(gradient.double() * maps.pop(name).double())  # (N, F, D)
            scores[name] = products.mean(2).abs().mean(0).cpu()

        with torch.enable_grad():
            leaf = inputs.detach().clone().requires_grad_()
            hook = model.register_forward_hook(lambda module, args, output: outputs.append(output))
            try:
                score_forward_pass(model, leaf.clone(), targets, self.where, keep)
            finally:
                hook.remove()
            # The sum, so that the gradient of each sample is that of its own loss.
            torch.autograd.grad(cross_entropy(outputs[0], labels, reduction="sum"), leaf)
        return scores


class AlignmentElimination(_SetCriterion):
    """Order in which filters go when the kernel of those that are left is to stay aligned with that of the whole layer.

        K_S = exp(-sum_{f in S} |x_i,f - x_j,f|^2 / sigma^2),   A(S) = <K_S, K> / (|K_S| |K|),   K = K_S of all filters.

    Backward elimination: of the filters in S the one goes without which A, averaged over the mini-batches, is largest;
    of equal ones the lowest index. The score is the position in this order, from 0 for the first to go. No labels. The
    width sigma is, in each mini-batch, the mean distance between the layer's outputs over all N^2 pairs.

    Time grows with F^2 N^2, memory with F N^2, times the mini-batches: take few of them. Several ranks of
    torch.distributed do not share the work: each does all of it.

    Args:
        batches, where, progress: as for `HRel`; labels are not used.

    Source: this package; A is the kernel alignment of N. Cristianini et al., NIPS 2001.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([2.0, 0.0, 1.0])[:, None, None, None])
        >>> images = torch.tensor([0.0, 1.0, 3.0])[:, None, None, None]
        >>> AlignmentElimination([(images, torch.tensor([0, 1, 1]))]).scores(model)["0"].tolist()
        [2.0, 0.0, 1.0]
    """

    name = "alignment"
    _chunk_bytes: ClassVar[int] = 2**25  # of candidates' kernels at a time; small enough for a cache to help

    def _of_maps(self, name: str, maps: Tensor) -> Tensor:
        # pdist takes differences, so that equal maps give exactly 0.
        distances = [
            torch.pdist(x) for x in flatten_maps(maps.double()).transpose(0, 1)
        ]  # of (N, D), to (P,), N (N - 1) / 2
        squared = torch.stack(distances).square()  # (F, P)
        mean_distance = 2 * squared.sum(0).sqrt().sum() / len(maps) ** 2
        return squared / mean_distance**2 if mean_distance > 0 else squared

    def _together(self, rows: list[Tensor]) -> FilterScores:
        num_filters = len(rows[0])
        left = torch.arange(num_filters)
        totals = [squared.sum(0) for squared in rows]  # (P,) each, of the filters that are left
        whole = [(-total).exp() for total in totals]
        position = torch.zeros(num_filters, dtype=torch.float64)
        for place in range(num_filters):
            alignment = reduce(
                torch.add,
                (self._alignments(s[left], total, k) for s, total, k in zip(rows, totals, whole, strict=True)),
            )  # (candidates,)
            best = int(alignment.argmax())  # argmax takes the first maximum
            position[left[best]] = place
            totals = [total - squared[left[best]] for squared, total in zip(rows, totals, strict=True)]
            left = torch.cat((left[:best], left[best + 1 :]))
        return FilterScores(position[None])

    def _alignments(self, squared: Tensor, total: Tensor, whole: Tensor) -> Tensor:
        """A without each of the candidates (m, P), all of which together have the distances total (P,): (m,)."""
        num_pairs = total.shape[0]
        num_samples = (1 + (1 + 8 * num_pairs) ** 0.5) / 2  # on the diagonal of a kernel
        norm = (num_samples + 2 * whole.square().sum()).sqrt()
        parts = []
        for some in squared.split(max(1, self._chunk_bytes // (8 * max(1, num_pairs)))):
            kernels = (some - total).clamp_(max=0).exp_()  # (m, P); rounding could make a distance negative
            norms = (num_samples + 2 * kernels.square().sum(1)).sqrt()
            # Row by row alike, unlike a matrix product: filters that are alike must tie exactly.
            parts.append((num_samples + 2 * (kernels * whole).sum(1)) / (norms * norm))
        return torch.cat(parts)


class HRel(_MapCriterion):
    """Relevance of a filter: mutual information of its maps with the labels, in bits, mean over the mini-batches.

    Args:
        batches: pairs of inputs (N, ...) and integer labels (N,) that can be gone through again and again, all with
            the same N; a smaller last one is left out unless it is the only one.
        sigma: kernel width in exp(-d^2 / sigma^2), as for `hrel_ext.relevance`; None is one per layer and mini-batch.
        alpha: order of the entropy.
        label_sigma: kernel width of the labels.
        where: the tensor that is scored for a convolution: "conv", "bn", "relu" or "pool", see `hrel_ext.collect`.
        progress: wraps ``batches`` in each pass, for example in a progress bar.

    Source: Sarvani et al., HRel, Neural Networks 147 (2022), doi 10.1016/j.neunet.2021.12.017.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> labels = torch.arange(24) % 3
        >>> images = torch.rand(24, 1, 4, 4) + labels[:, None, None, None]
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([0.0, 1.0])[:, None, None, None])  # the first is dead
        >>> [abs(round(value, 1)) for value in HRel([(images, labels)]).scores(model)["0"].tolist()]
        [0.0, 1.6]
    """

    name = "hrel"

    def __init__(
        self,
        batches: Iterable[Batch],
        *,
        sigma: float | Tensor | str | None = None,
        alpha: float = 1.01,
        label_sigma: float = 0.1,
        where: str = "conv",
        progress: Progress = None,
    ) -> None:
        super().__init__(batches, where=where, progress=progress)
        self.sigma, self.alpha, self.label_sigma = sigma, alpha, label_sigma

    def _of_batches(
        self, model: nn.Module, batches: Iterator[Batch], targets: dict[str, nn.Module]
    ) -> Mapping[str, FilterScores | LayerScores]:
        return self._collect(model, batches, targets)

    def _collect(
        self, model: nn.Module, batches: Iterator[Batch], targets: dict[str, nn.Module], **null: Any
    ) -> Scores:
        return collect(
            model,
            batches,
            layers=targets,
            where=self.where,
            sigma=self.sigma,
            alpha=self.alpha,
            label_sigma=self.label_sigma,
            **null,
        )


class HRelDebiased(HRel):
    """Relevance less the mean of its label-permutation null, in bits: I_f - sum_r I_rf / R, mean over the mini-batches.

    What is left is what permuted labels do not give as well.

    Args:
        batches, sigma, alpha, label_sigma, where, progress: as for `HRel`.
        permutations: draws of the null in each mini-batch, R.
        seed: of the permutations.

    Source: the null is this package's, see `hrel_ext.permutation_null`.

    Example:
        >>> labels = torch.arange(24) % 3
        >>> images = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + labels[:, None, None, None]
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([0.0, 1.0])[:, None, None, None])
        >>> dead, alive = HRelDebiased([(images, labels)]).scores(model)["0"].tolist()
        >>> round(dead, 2), alive > 0.5
        (0.0, True)
    """

    name = "hrel_debiased"

    def __init__(
        self,
        batches: Iterable[Batch],
        *,
        sigma: float | Tensor | str | None = None,
        alpha: float = 1.01,
        label_sigma: float = 0.1,
        permutations: int = 20,
        seed: int = 0,
        where: str = "conv",
        progress: Progress = None,
    ) -> None:
        super().__init__(batches, sigma=sigma, alpha=alpha, label_sigma=label_sigma, where=where, progress=progress)
        if not isinstance(permutations, int) or isinstance(permutations, bool):
            raise TypeError(f"permutations must be an int, got {type(permutations).__name__}")
        if permutations < 1:
            raise ValueError(f"permutations must be >= 1, got {permutations}")
        self.permutations, self.seed = permutations, seed

    def _of_batches(
        self, model: nn.Module, batches: Iterator[Batch], targets: dict[str, nn.Module]
    ) -> Mapping[str, FilterScores | LayerScores]:
        table = self._collect(model, batches, targets, permutations=self.permutations, seed=self.seed)
        return {name: _less(scores, cast(Tensor, scores.null).double().mean(0)) for name, scores in table.items()}


def _less(scores: LayerScores, bias: Tensor) -> FilterScores:
    """Scores less a number for each filter (F,)."""
    per_batch = scores.per_batch.double() - bias
    if scores.moments is None:
        return FilterScores(per_batch)
    count, total, squares = scores.moments
    moments = torch.stack([count, total - count * bias, squares - 2 * total * bias + count * bias.square()])
    return FilterScores(per_batch, moments)


class HRelSet(HRel):
    """Order in which a greedy search takes the filters, so that those taken tell much about the labels together.

        I(T_S; Y) = S(A_S) + S(B) - S(A_S, B),   K_S = exp(-sum_{f in S} |x_i,f - x_j,f|^2 / sigma^2) = N A_S.

    Forward selection by `hrel_ext.select_filters`, until no filter is left: the one that makes the mean over the
    mini-batches largest comes next, of equal ones that of the higher relevance of its own, then of the lower index;
    copies of other filters, dead filters among them, come after all that are not. The score is the number of filters
    that come after it, F - 1 for the first.

    Takes about F^2 entropies of N x N matrices for each layer and mini-batch; all maps are held until the pass over the
    data ends, and 4 F N^2 bytes more for each mini-batch of the layer at hand: take few of them. Several ranks of
    torch.distributed do not share the work: each does all of it.

    Args:
        batches, sigma, alpha, label_sigma, where, progress: as for `HRel`.

    Source: `hrel_ext.select_filters`.

    Example:
        >>> # Filter 0 tells the larger half of the classes apart, filter 2 the other bit, filter 1 is dead.
        >>> labels = torch.arange(8) % 4
        >>> images = torch.stack([2 * (labels // 2), labels % 2], 1).float()[..., None, None]
        >>> model = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])[..., None, None])
        >>> HRelSet([(images, labels)], sigma=0.5).scores(model)["0"].tolist()
        [2.0, 0.0, 1.0]
    """

    name = "hrel_set"
    _one_by_one = False
    _of_batches = _SetCriterion._of_batches  # maps are kept, where `collect` would score them at once

    def _of_batch(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, targets: dict[str, nn.Module]
    ) -> dict[str, Any]:
        def keep(name: str, output: Tensor) -> tuple[Tensor, Tensor]:
            _check_maps(name, output)
            return output.clone(), labels  # an operation in place may follow

        return score_forward_pass(model, inputs, targets, self.where, keep)

    def _together(self, rows: list[tuple[Tensor, Tensor]]) -> FilterScores:
        num_filters = rows[0][0].shape[1]
        options: dict[str, Any] = {"sigma": self.sigma, "alpha": self.alpha, "label_sigma": self.label_sigma}
        order = select_filters(rows, keep=num_filters, **options).order  # (F,)
        return FilterScores((num_filters - 1 - order.argsort()).double()[None])


class TorchPruningCriterion(_DataCriterion):
    """Any importance of Torch-Pruning, or a function of the same form, as a criterion of this package.

    For each layer the importance gets the group of all filters of the layer with what is coupled to them, as from
    ``DependencyGraph.get_pruning_group``.

    Args:
        batches: the first sample of the first mini-batch traces the network; nothing else is read of the data.
        importance: called as ``importance(group)``; gives (F,), low goes first, or None where it cannot tell.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 1, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0, -4.0], [0.0, 1.0]])[..., None, None])
        >>> magnitude = torch_pruning.importance.MagnitudeImportance(p=1, group_reduction="first", normalizer=None)
        >>> batches = [(torch.zeros(3, 2, 4, 4), torch.tensor([0, 1, 1]))]
        >>> TorchPruningCriterion(batches, importance=magnitude).scores(model, ["0"])["0"].tolist()
        [7.0, 1.0]
    """

    name = "torch_pruning"

    def __init__(self, batches: Iterable[Batch], *, importance: Callable[..., Tensor | None]) -> None:
        super().__init__(batches)
        self.importance = importance

    def _measure(
        self, model: nn.Module, targets: dict[str, nn.Module], unscored: dict[str, str] | None
    ) -> Mapping[str, FilterScores | LayerScores]:
        sample, _ = self._sample(iter(self.batches))
        scores, lacking = {}, {}
        graph = dependency_graph(model, sample)
        for name in targets:
            layer = model.get_submodule(name)
            if layer not in graph.module2node:
                lacking[name] = "is not in the traced graph"
                continue
            prune_out = graph.get_pruner_of_module(layer).prune_out_channels
            filters = list(range(cast(int, _num_filters(layer))))
            found = self.importance(graph.get_pruning_group(layer, prune_out, filters))
            if found is None:
                lacking[name] = "the importance gives None"
            else:
                scores[name] = FilterScores(found.detach().double().cpu()[None])
        if unscored is not None:
            unscored |= lacking
        if lacking and (unscored is None or not scores):
            raise ValueError(f"layers must be ones that the importance can score: {_reasons(lacking)}")
        return scores


def dependency_graph(model: nn.Module, example_inputs: Tensor) -> torch_pruning.DependencyGraph:
    """Torch-Pruning's graph of a network, whose modes and ``requires_grad`` stay as they were.

    Args:
        model: on any device.
        example_inputs: (1, ...) or more samples.
    """
    with traceable(model):
        # The tuple matters: given a bare tensor, the tracer first tries to unpack it into its samples.
        return torch_pruning.DependencyGraph().build_dependency(model, (example_inputs.to(_device(model)),))


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _reasons(lacking: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({reason})" for name, reason in lacking.items())


# Each is made by CRITERIA[name](batches, **options).
CRITERIA: dict[str, type[Criterion]] = {
    criterion.name: criterion
    for criterion in (
        HRel,
        HRelDebiased,
        HRelSet,
        AlignmentElimination,
        ActivationVariance,
        HRank,
        Taylor,
        BatchNormScale,
        L1Norm,
        L2Norm,
        Random,
    )
}
