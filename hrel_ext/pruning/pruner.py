"""The pruning engine: score the filters, remove the lowest from the network, retrain, repeat down to the limits.

Towards limits, a layer with n filters left loses the k = min(int(p n) + 1, n - limit) with the lowest scores in each
cycle; towards a budget, the way is split into equal cycles.
"""
# SPDX-License-Identifier: MIT

import inspect
import math
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hrel_ext import _ranks
from hrel_ext.collect import Batch
from hrel_ext.pruning.cost import count
from hrel_ext.pruning.criteria import Criterion, HRel
from hrel_ext.pruning.cycles import Cycle, Decision, RunState, restore
from hrel_ext.pruning.groups import Group, remove_filters
from hrel_ext.pruning.planning import Plan, make_plan
from hrel_ext.pruning.planning import plan as plan_pruning
from hrel_ext.pruning.resume import Checkpoints
from hrel_ext.pruning.state import Snapshot, recalibrate
from hrel_ext.scores import weight_hash


@dataclass(frozen=True, eq=False)
class PruningResult:
    """What a pruning run did.

    Attributes:
        plan: what was to be done.
        original: layer to the filters it had, for all convolutions that the plan prunes.
        cycles: one `Cycle` each, in order; never empty.
        stopped: why there were no more cycles.
    """

    plan: Plan
    original: Mapping[str, int]
    cycles: tuple[Cycle, ...]
    stopped: str

    @property
    def kept(self) -> Mapping[str, tuple[int, ...]]:
        """Layer to the indices of the filters that are left, in the numbering of the unpruned network."""
        return self.cycles[-1].kept


def prune(
    model: nn.Module,
    score_batches: Iterable[Batch],
    example_inputs: Tensor,
    *,
    limits: Mapping[str, int] | None = None,
    shares: Mapping[str, float] | None = None,
    target: Mapping[str, float | str] | None = None,
    plan: Plan | None = None,
    residual: str = "inner",
    round_to: int = 1,
    min_channels: int = 1,
    max_ratio: float = 1.0,
    exclude: Collection[str] = (),
    cycles: int = 1,
    retrain: Callable[[nn.Module, int], object] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    max_drop: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scored: Mapping[str, str] | None = None,
    sigma: float | str | None = None,
    alpha: float = 1.01,
    label_sigma: float = 0.1,
    criterion: Criterion | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_cycle: Callable[[Cycle], None] | None = None,
    progress: Callable[[Iterable[Batch]], Iterable[Batch]] | None = None,
) -> PruningResult:
    """Prune a network in place, in cycles: score, remove, estimate batch norms anew, retrain, evaluate.

    What is removed in all comes from a budget (``target``), from ``limits`` with ``shares``, or from a ``plan``.
    Filters are really removed, together with what depends on them in other layers. Filters that can only go together
    (see `hrel_ext.pruning.Group`) have one score, the mean over those of them that are scored: the largest would let
    one layer of a residual stream decide alone, and the more layers, the less would it tell apart. Of equal scores the
    lower index goes first. What has reached its end is no longer scored.

    In a process group of torch.distributed all ranks must call this with the same arguments. They share the
    mini-batches; the plan and the choice of filters are rank 0's, sent to the others; that all ranks have the same
    network is checked by its hash before and after every removal. Rank 0 writes the checkpoints. ``retrain`` and
    ``evaluate`` are called on every rank.

    Args:
        model: the network, trained, on any device. Its parameters are replaced; an optimizer made before is void
            unless it is given as ``optimizer``.
        score_batches: re-iterable pairs of inputs and labels that the filters are scored on, see `hrel_ext.collect`;
            batch norms are estimated on them, too. A ``criterion`` has mini-batches of its own to score on.
        example_inputs: (1, ...) or more samples, to trace the network with.
        limits: convolution (its name in the model) to the number of filters it is to end with.
        shares: the same names to the share p of the remaining filters that goes in each cycle, 0 < p < 1.
        target: the budget, see `hrel_ext.pruning.plan`.
        plan: made for this network, in place of ``limits`` or ``target`` and the rules.
        residual: see `hrel_ext.pruning.plan`, as are the rules that follow.
        round_to: filters of a convolution that is pruned are a multiple of this.
        min_channels: a convolution that is pruned keeps at least so many filters.
        max_ratio: largest share of a convolution's filters that may go.
        exclude: convolutions that stay whole.
        cycles: number of cycles to the budget; towards limits it follows from ``shares``.
        retrain: called as ``retrain(model, number)`` after the removal of each cycle; trains in place.
        evaluate: called as ``evaluate(model)`` after retraining, and before the first cycle if there is a ``max_drop``;
            its number, say the accuracy on a validation split, is recorded.
        max_drop: stop when ``evaluate`` returns less than before the first cycle by more than this, or NaN, and roll
            back to the last good cycle.
        optimizer: whose state, such as momentum, is cut along with the parameters; it stays valid.
        scored: convolution to the module whose output is scored for it, one channel per filter, such as the pool that
            follows. Left out: the output of the convolution.
        sigma: kernel width in exp(-d^2 / sigma^2), see `hrel_ext.relevance`.
        alpha: order of the entropy.
        label_sigma: kernel width of the labels.
        criterion: what ranks the filters; None is `HRel` with the arguments above. ``sigma``, ``alpha``,
            ``label_sigma`` and ``progress`` belong to that one alone, and are refused with another.
        checkpoint: a folder that takes the state before every cycle and the filters that a cycle is about to remove. A
            run that was interrupted goes on from there when it is called again, with the unpruned network and the same
            arguments; the scores of the cycle that was interrupted are not made again. Functions must repeat
            themselves: ``retrain`` begins anew, from `hrel_ext.pruning.train`'s own checkpoint for instance.
        on_cycle: called with each `Cycle` when it is done, before it may be rolled back, and at once with those of a
            checkpoint.
        progress: wraps ``score_batches`` while filters are scored.

    Returns:
        The filters removed and kept in each cycle, with their scores.

    Raises:
        ValueError: an argument that breaks a rule (see `check_schedule` and `hrel_ext.pruning.plan`), before any work;
            nothing to prune, with the reasons; scores that are not finite, or what ``evaluate`` returns; a checkpoint
            of another run; ranks whose networks differ, which it names.
        RuntimeError: the first cycle already falls by more than ``max_drop``; the network is what it was.
        OSError: a checkpoint cannot be written; the one before it is still there.

    Source: Sarvani CH et al., HRel, Neural Networks 147 (2022), arXiv 2202.10716, and its published code. Departs from
        the code: filters are removed, not masked, and there is no idle cycle at the end.
    """
    if (max_drop is not None) and not (evaluate and max_drop >= 0):
        raise ValueError(f"max_drop must be at least 0 and come with evaluate, got {max_drop}")
    rules: dict[str, Any] = {
        "target": target,
        "limits": limits,
        "residual": residual,
        "round_to": round_to,
        "min_channels": min_channels,
        "max_ratio": max_ratio,
        "exclude": exclude,
    }
    if criterion is not None:
        if not isinstance(criterion, Criterion):
            raise ValueError(f"criterion must be a Criterion, such as CRITERIA['l1'](batches), got {criterion!r}")
        of_hrel = {"sigma": sigma, "alpha": alpha, "label_sigma": label_sigma, "progress": progress}
        if given := _given(prune, of_hrel):
            raise ValueError(f"criterion must be given without what HRel is made with, got {', '.join(given)} as well")
    if plan is not None:
        if given := _given(plan_pruning, rules):
            raise ValueError(f"plan must be given without target, limits and rules, got {', '.join(given)} as well")
        limits = plan.limits or None
    if limits is not None:
        check_schedule(model, limits, shares or {}, scored)
        if cycles != 1:
            raise ValueError(f"cycles must be left out where shares decide, got {cycles}")
    elif shares is not None:
        raise ValueError("shares must come with limits, got none")
    start: Any = None  # the accuracy before, where max_drop asks for it
    store, earlier, folder = None, None, None
    if checkpoint is not None:
        settings = {
            **{**rules, "exclude": sorted(exclude)},
            "plan": plan
            and [[group.convolutions[0], left] for group, left in zip(plan.groups, plan.kept, strict=True)],
            "shares": shares and dict(shares),
            "cycles": cycles,
            "max_drop": max_drop,
            "scored": scored and dict(scored),
            "criterion": HRel.name if criterion is None else criterion.name,
            "criterion_options": criterion and criterion.options,
            "sigma": sigma,
            "alpha": alpha,
            "label_sigma": label_sigma,
            "parameters": {name: list(parameter.shape) for name, parameter in model.named_parameters()},
        }
        store = Checkpoints(checkpoint, settings)
        earlier = (folder := store.latest()) and RunState.read(folder)
    if plan is None:
        measured = earlier.measured if earlier else None
        plan = _ranks.from_first(partial(make_plan, model, example_inputs, **rules, measured=measured))
    steps = _limit_steps(plan, shares or {}) if limits is not None else _budget_steps(plan, cycles)
    original = _original(model, plan)
    _check_scored(plan, scored or {}, model)

    if criterion is None:
        criterion = HRel(score_batches, sigma=sigma, alpha=alpha, label_sigma=label_sigma, progress=progress)
    kept = {name: tuple(range(width)) for name, width in original.items()}
    done: list[Cycle] = []
    if earlier:
        start, done = earlier.start, list(earlier.cycles)
        kept = dict(done[-1].kept) if done else kept
        removed = {name: sorted(set(range(width)) - set(kept[name])) for name, width in original.items()}
        restore(cast(Path, folder), model, example_inputs, removed, optimizer, score_batches)
        if on_cycle:
            for cycle in done:
                on_cycle(cycle)
    else:
        start = _evaluated(evaluate, model) if evaluate and max_drop is not None else None

    def save(decision: Decision | None = None) -> None:
        if store:
            state = RunState(plan.measured, start, done, decision)
            store.save(partial(state.write, model, optimizer, score_batches))

    for number, goal in enumerate(steps[len(done) :], start=len(done) + 1):
        before: Any = Snapshot(model, optimizer) if max_drop is not None else None
        if earlier and earlier.decision and earlier.decision.number == number:
            decision = earlier.decision
        else:
            _check_ranks(model)
            decision = _decide(number, goal, plan, criterion, model, scored or {}, kept)
            decision = _ranks.from_first([decision].pop)
            save(decision)
        positions = {name: {index: i for i, index in enumerate(kept[name])} for name in decision.removed}
        now = {name: [positions[name][index] for index in indices] for name, indices in decision.removed.items()}
        remove_filters(model, example_inputs, now, optimizer=optimizer)
        gone = {name: frozenset(indices) for name, indices in decision.removed.items()}
        kept = {name: tuple(i for i in left if i not in gone.get(name, ())) for name, left in kept.items()}
        recalibrate(model, score_batches)
        _check_ranks(model)
        if retrain:
            retrain(model, number)
        accuracy: Any = _evaluated(evaluate, model, start) if evaluate else None
        cycle = Cycle(number, decision.scores, decision.removed, kept, accuracy, count(model, example_inputs))
        if on_cycle:
            on_cycle(cycle)
        if start is not None and not start - accuracy <= max_drop:  # NaN is a drop as well
            before.restore()
            drop = f"cycle {number} fell from {start:.4f} to {accuracy:.4f}, more than max_drop {max_drop:g}"
            if not done:
                raise RuntimeError(f"nothing was pruned: {drop}")
            return PruningResult(plan, original, tuple(done), f"rolled back to cycle {number - 1}: {drop}")
        done.append(cycle)
        save()
    stopped = "the limits are reached" if limits else "the budget is met"
    if any(len(kept[name]) > left for name, left in (limits or {}).items()):
        stopped = "the limits are reached as far as round_to, min_channels and max_ratio allow"
    return PruningResult(plan, original, tuple(done), stopped)


def _check_ranks(model: nn.Module) -> None:
    """Raise ValueError on every rank, and name those that differ, unless the ranks have the same network."""
    if _ranks.num_ranks() > 1:  # the hash reads all weights
        _ranks.check_equal("the network", f"weights of SHA-256 {weight_hash(model)[:12]}")


def _evaluated(evaluate: Callable[[nn.Module], float], model: nn.Module, start: float | None = None) -> float:
    """What ``evaluate`` says of the network, a finite number unless there is a ``start`` to roll back to."""
    value = evaluate(model)
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(value, Real) or (start is None and not math.isfinite(value)):
        raise ValueError(f"evaluate must return a finite number, got {value!r}")
    return float(value)


def _given(function: Callable[..., object], arguments: Mapping[str, object]) -> list[str]:
    """The names of those arguments that are not the defaults of a function."""
    defaults = inspect.signature(function).parameters
    return [name for name, value in arguments.items() if value != defaults[name].default]


def _decide(
    number: int,
    goal: Sequence[int],
    plan: Plan,
    criterion: Criterion,
    model: nn.Module,
    scored: Mapping[str, str],
    kept: Mapping[str, tuple[int, ...]],
) -> Decision:
    """Score the groups that have more units than their goal, and choose the units with the lowest scores."""
    left_of = {name: frozenset(indices) for name, indices in kept.items()}
    left = [
        [
            at
            for at, unit in enumerate(group.units)
            if all(left_of[name].issuperset(indices) for name, indices in unit.items())
        ]
        for group in plan.groups
    ]
    losing = [at for at, units in enumerate(left) if len(units) > goal[at]]
    targets = {name: scored.get(name, name) for at in losing for name in plan.scored(plan.groups[at])}
    scores = criterion.table(model, targets)
    means = {name: scores[name].mean for name in targets}
    removed: dict[str, list[int]] = defaultdict(list)  # in the numbering of the unpruned network
    for at in losing:
        lowest = lowest_filters(unit_scores(plan.groups[at], left[at], means, kept), len(left[at]) - goal[at])
        for unit in (left[at][i] for i in lowest):
            for name, indices in plan.groups[at].units[unit].items():
                removed[name] += indices
    return Decision(number, scores, {name: tuple(indices) for name, indices in removed.items()})


def unit_scores(
    group: Group, units: Sequence[int], scores: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]]
) -> Tensor:
    """The score of each unit of a group: the mean over its layers that are scored, of the mean over its filters there.

    Args:
        group: whose units.
        units: the numbers of those that are left, U of them.
        scores: layer to the scores of its filters that are left, (F,).
        kept: layer to the indices of these filters in the unpruned network, ascending.

    Returns:
        (U,), float64.

    Raises:
        ValueError: a score that is not finite.
    """
    layers = []
    for name in (name for name in group.convolutions if name in scores):
        if bad := (~scores[name].isfinite()).nonzero().flatten().tolist():
            value = scores[name][bad[0]].item()
            raise ValueError(f"scores must be finite, got {value} for filter {kept[name][bad[0]]} of layer {name!r}")
        position = {index: i for i, index in enumerate(kept[name])}
        rows = torch.tensor([[position[index] for index in group.units[unit][name]] for unit in units])  # (U, width)
        layers.append(scores[name].cpu().double()[rows].mean(dim=1))
    return torch.stack(layers).mean(dim=0)


def _limit_steps(plan: Plan, shares: Mapping[str, float]) -> list[list[int]]:
    """The units that each group keeps after each cycle, by the rule of the paper, in steps that the levels allow."""
    steps = []
    left = [len(group.units) for group in plan.groups]
    share = [_share(group, plan.limits, shares) for group in plan.groups]
    while left != list(plan.kept):
        left = [_next_level(plan.levels[at], n, share[at], plan.kept[at]) for at, n in enumerate(left)]
        steps.append(left)
    return steps


def _next_level(levels: Sequence[int], left: int, share: float, limit: int) -> int:
    if left == limit:
        return left
    wanted = left - num_removed(left, share, limit)
    return min((n for n in levels if wanted <= n < left), default=max(n for n in levels if n < left))


def _share(group: Group, limits: Mapping[str, int], shares: Mapping[str, float]) -> float:
    named = [name for name in group.convolutions if name in limits]
    if len({shares[name] for name in named}) > 1:
        values = ", ".join(f"{name}={shares[name]}" for name in named)
        raise ValueError(f"shares must be equal for layers that lose the same filters, got {values}")
    return shares[named[0]]


def _budget_steps(plan: Plan, cycles: int) -> list[list[int]]:
    """The units that each group keeps after each of the cycles: the way to the plan in equal parts, on its levels."""
    if not isinstance(cycles, int) or cycles < 1:
        raise ValueError(f"cycles must be an integer of at least 1, got {cycles}")
    steps: list[list[int]] = []
    for number in range(1, cycles + 1):
        wanted = [
            len(group.units) - (len(group.units) - kept) * number / cycles
            for group, kept in zip(plan.groups, plan.kept, strict=True)
        ]
        left = [min(n for n in levels if n >= w) for levels, w in zip(plan.levels, wanted, strict=True)]
        if left != (steps[-1] if steps else [len(group.units) for group in plan.groups]):
            steps.append(left)
    return steps


def _original(model: nn.Module, plan: Plan) -> dict[str, int]:
    """Convolution to its filters, for all that the plan prunes."""
    widths = {layer.name: layer.before for layer in plan.layers}
    names = dict.fromkeys(name for group in plan.groups for name in group.convolutions)
    modules = dict(model.named_modules())
    for name, width in widths.items():
        if getattr(modules.get(name), "out_channels", None) != width:
            raise ValueError(f"plan must be made for this network: {name!r} must have {width} filters")
    return {name: widths[name] for name in names}


def _check_scored(plan: Plan, scored: Mapping[str, str], model: nn.Module) -> None:
    known = [name for group in plan.groups for name in plan.scored(group)]
    modules = dict(model.named_modules())
    for name, module in scored.items():
        if name not in known and name not in plan.limits:
            raise ValueError(f"scored must name layers that are pruned and scored ({', '.join(known)}), got {name!r}")
        if module not in modules:
            raise ValueError(f"scored[{name!r}] must be a module of the model, got {module!r}")


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
