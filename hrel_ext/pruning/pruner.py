"""The pruning engine: score the filters, remove the lowest from the network, retrain, repeat down to the limits.

In each cycle a layer with n filters left loses the k = min(int(p n) + 1, n - limit) with the lowest scores.
"""
# SPDX-License-Identifier: MIT

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch_pruning
from torch import Tensor, nn

from hrel_ext.collect import Batch, evaluation_mode
from hrel_ext.pruning.criteria import Criterion, FilterScores, HRel
from hrel_ext.scores import LayerScores


@dataclass(frozen=True, eq=False)
class Cycle:
    """What one cycle did. Filters are counted and numbered as in the unpruned network.

    Attributes:
        number: 1 for the first cycle.
        scores: layer to the `LayerScores` (of another criterion than HRel: `FilterScores`) of the filters it had before
            the cycle, in ascending order of their indices; only of the layers that were not yet at their limit.
        removed: layer to the indices that went, lowest score first.
        kept: layer to the indices that are left, ascending.
        accuracy: what ``evaluate`` returned after retraining; None without ``evaluate``.
    """

    number: int
    scores: Mapping[str, LayerScores | FilterScores]
    removed: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, tuple[int, ...]]
    accuracy: float | None

    @property
    def filters(self) -> dict[str, int]:
        """Layer to the number of filters left."""
        return {name: len(kept) for name, kept in self.kept.items()}


@dataclass(frozen=True, eq=False)
class PruningResult:
    """What a pruning run did.

    Attributes:
        original: layer to the filters it had.
        cycles: one `Cycle` each, in order; never empty.
    """

    original: Mapping[str, int]
    cycles: tuple[Cycle, ...]

    @property
    def kept(self) -> Mapping[str, tuple[int, ...]]:
        """Layer to the indices of the filters that are left, in the numbering of the unpruned network."""
        return self.cycles[-1].kept


def prune(
    model: nn.Module,
    score_batches: Iterable[Batch],
    example_inputs: Tensor,
    *,
    limits: Mapping[str, int],
    shares: Mapping[str, float],
    retrain: Callable[[nn.Module, int], object] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    scored: Mapping[str, str] | None = None,
    sigma: float | str | None = None,
    alpha: float = 1.01,
    label_sigma: float = 0.1,
    criterion: Criterion | None = None,
    on_cycle: Callable[[Cycle], None] | None = None,
    progress: Callable[[Iterable[Batch]], Iterable[Batch]] | None = None,
) -> PruningResult:
    """Prune a network in place, in cycles, until every layer is at its limit.

    Filters are really removed, together with what depends on them in the following layers. Of equal scores the filter
    with the lower index goes first. A layer at its limit is no longer scored, and the last cycle is the one in which
    the last layer reaches it.

    Args:
        model: the network, trained, on any device. Its parameters are replaced, so an optimizer made before is void.
        score_batches: re-iterable pairs of inputs and labels that the filters are scored on, see `hrel_ext.collect`;
            a ``criterion`` has mini-batches of its own.
        example_inputs: (1, ...) or more samples, to trace the network with.
        limits: convolution (its name in the model) to the number of filters it is to end with.
        shares: the same names to the share p of the remaining filters that goes in each cycle, 0 < p < 1.
        retrain: called as ``retrain(model, number)`` after the removal of each cycle; trains in place.
        evaluate: called as ``evaluate(model)`` after retraining; its number, say the accuracy on a validation split, is
            recorded and decides nothing.
        scored: convolution to the module whose output is scored for it, one channel per filter, such as the pool that
            follows. Left out: the output of the convolution.
        sigma: kernel width in exp(-d^2 / sigma^2), see `hrel_ext.relevance`.
        alpha: order of the entropy.
        label_sigma: kernel width of the labels.
        criterion: what ranks the filters; None is `HRel` with the arguments above. ``sigma``, ``alpha``,
            ``label_sigma`` and ``progress`` belong to that one alone.
        on_cycle: called with each `Cycle` when it is done.
        progress: wraps ``score_batches`` in each cycle.

    Returns:
        The filters removed and kept in each cycle, with their scores.

    Raises:
        ValueError: an argument that breaks a rule (see `check_schedule`), before any work; scores that are not finite.
        RuntimeError: the removal did not leave the number of filters that was asked for.

    Source: Sarvani CH et al., HRel, Neural Networks 147 (2022), arXiv 2202.10716, and its published code. Departs from
    the code: filters are removed, not masked, and there is no idle cycle at the end.
    """
    check_schedule(model, limits, shares, scored)
    if criterion is None:
        criterion = HRel(score_batches, sigma=sigma, alpha=alpha, label_sigma=label_sigma, progress=progress)
    original = {name: model.get_submodule(name).out_channels for name in limits}
    kept = {name: tuple(range(count)) for name, count in original.items()}
    cycles: list[Cycle] = []
    while unfinished := [name for name in limits if len(kept[name]) > limits[name]]:
        targets = {name: (scored or {}).get(name, name) for name in unfinished}
        scores = criterion.table(model, targets)
        lowest: dict[str, list[int]] = {}
        for name in unfinished:
            num_filters = len(kept[name])
            lowest[name] = lowest_filters(scores[name].mean, num_removed(num_filters, shares[name], limits[name]))
        remove_filters(model, example_inputs, lowest)
        removed = {name: tuple(kept[name][i] for i in indices) for name, indices in lowest.items()}
        kept = {name: tuple(i for i in left if i not in removed.get(name, ())) for name, left in kept.items()}
        number = len(cycles) + 1
        if retrain:
            retrain(model, number)
        cycles.append(Cycle(number, scores, removed, kept, evaluate(model) if evaluate else None))
        if on_cycle:
            on_cycle(cycles[-1])
    return PruningResult(original, tuple(cycles))


def num_removed(num_filters: int, share: float, limit: int) -> int:
    """The filters that go in one cycle: int(p n) + 1, but never beyond the limit.

    Departs from HRel's code for VGG-16, which overshoots its limits.
    """
    return min(int(share * num_filters) + 1, num_filters - limit)


def schedule(
    num_filters: Mapping[str, int], limits: Mapping[str, int], shares: Mapping[str, float]
) -> list[dict[str, int]]:
    """The filters per layer before the first cycle and after each one, without touching a network.

    Args:
        num_filters: layer to its filters now.
        limits: layer to the filters it ends with, at most as many.
        shares: layer to the share that goes in each cycle.

    Returns:
        One mapping per cycle and one for the start, so one entry means that there is nothing to prune.
    """
    counts = [dict(num_filters)]
    while any(counts[-1][name] > limits[name] for name in limits):
        counts.append({name: n - num_removed(n, shares[name], limits[name]) for name, n in counts[-1].items()})
    return counts


def lowest_filters(scores: Tensor, count: int) -> list[int]:
    """Indices of the lowest scores (F,), lowest first; of equal scores the lower index goes first."""
    return scores.argsort(stable=True)[:count].tolist()


def check_schedule(
    model: nn.Module,
    limits: Mapping[str, int],
    shares: Mapping[str, float],
    scored: Mapping[str, str] | None = None,
) -> None:
    """Check the arguments of `prune` that name layers, so that a mistake costs no training.

    Args:
        model: the network.
        limits: convolution to the filters it ends with.
        shares: convolution to the share that goes in each cycle.
        scored: convolution to the module that is scored for it.

    Raises:
        ValueError: names the argument, the rule and the value.
    """
    modules = dict(model.named_modules())
    convolutions = {name: module for name, module in modules.items() if isinstance(module, nn.Conv2d)}
    if not limits:
        raise ValueError("limits must name at least one convolution, got none")
    for name, limit in limits.items():
        if name not in convolutions:
            raise ValueError(f"limits must name convolutions of the model ({', '.join(convolutions)}), got {name!r}")
        if convolutions[name].groups != 1:
            raise ValueError(
                f"limits must name ungrouped convolutions, got {name!r} with {convolutions[name].groups} groups"
            )
        width = convolutions[name].out_channels
        if not 1 <= limit <= width:
            raise ValueError(f"limits[{name!r}] must be between 1 and the {width} filters of the layer, got {limit}")
    if shares.keys() != limits.keys():
        raise ValueError(
            f"shares must name the same layers as limits ({', '.join(limits)}), got {', '.join(shares) or 'none'}"
        )
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ValueError(f"shares[{name!r}] must be above 0 and below 1, got {share}")
    for name, module in (scored or {}).items():
        if name not in limits:
            raise ValueError(f"scored must name layers of limits ({', '.join(limits)}), got {name!r}")
        if module not in modules:
            raise ValueError(f"scored[{name!r}] must be a module of the model, got {module!r}")
    if all(limit == convolutions[name].out_channels for name, limit in limits.items()):
        widths = ", ".join(f"{name}={limit}" for name, limit in limits.items())
        raise ValueError(f"limits must be below the width of at least one layer, got the widths themselves: {widths}")


def remove_filters(model: nn.Module, example_inputs: Tensor, removed: Mapping[str, Sequence[int]]) -> None:
    """Remove filters from a network in place, and what depends on them in other layers (Torch-Pruning's graph).

    Modes and ``requires_grad`` stay as they were; weights that stay keep every bit.

    Args:
        model: the network, on any device.
        example_inputs: (1, ...) or more samples, to trace it with.
        removed: convolution to the indices of its filters that go, in the numbering of the network as it is.

    Raises:
        ValueError: the indices would leave a layer without channels.
        RuntimeError: the layer does not have the right number of filters afterwards.
    """
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    device = next(model.parameters()).device
    with evaluation_mode(model), torch.enable_grad():  # tracing follows the gradient graph and leaves eval mode behind
        model.requires_grad_(True)  # a frozen layer would be invisible to the tracer
        for name, indices in removed.items():
            if not indices:
                continue
            layer = model.get_submodule(name)
            expected = layer.out_channels - len(set(indices))
            # A new graph each time: removing filters of one layer changes the shapes that the graph of another holds.
            # The tuple matters: given a bare tensor, the tracer first tries to unpack it into its samples.
            graph = torch_pruning.DependencyGraph().build_dependency(model, (example_inputs.to(device),))
            group = graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, sorted(indices))
            if not graph.check_pruning_group(group):
                raise ValueError(
                    f"removed must leave at least one channel in every layer, got {len(indices)} for {name!r}"
                )
            group.prune()
            if layer.out_channels != expected:
                raise RuntimeError(
                    f"layer {name!r} must have {expected} filters after pruning, got {layer.out_channels}"
                )
    for name, parameter in model.named_parameters():  # new parameters are born trainable
        parameter.requires_grad_(trainable[name])
