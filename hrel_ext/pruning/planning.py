"""What a pruning would remove, before anything is removed: groups, budgets, costs, and why a layer stays whole."""
# SPDX-License-Identifier: MIT

import copy
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor, nn

from hrel_ext.collect import evaluation_mode
from hrel_ext.pruning.cost import Cost, check_device, compare_latency, count
from hrel_ext.pruning.groups import CONVOLUTIONS, TRANSPOSED, Group, Side, check_removal, find_groups, remove_filters

BAND = 0.02  # a budget is met from below, within this share of the unpruned network where the steps allow it
TURNS, LONG_TURNS = 5, 30  # in which a network is timed: to search, and to decide
LONG_MEASUREMENTS = 4
LATENCY_TOLERANCE = 0.1  # share of the milliseconds that were asked for
BUDGETS = ("macs", "params", "latency_ms")
RESIDUALS = ("inner", "stream")


@dataclass(frozen=True)
class LayerPlan:
    """What a plan does to one convolution.

    Attributes:
        name: of the convolution.
        group: the first convolution of the group that shares its indices, which may be this one; None if the layer
            takes no part in a forward pass.
        asked: share of its filters that was to go, in [0, 1].
        before: filters of the unpruned network.
        after: filters left.
        macs_before: multiply-accumulates for one sample.
        macs_after: the same, with the inputs that are left.
        parameters_before: numbers in weight and bias.
        parameters_after: the same afterwards.
        reason: why the layer keeps all its filters; None if it does not.
    """

    name: str
    group: str | None
    asked: float
    before: int
    after: int
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    reason: str | None

    @property
    def got(self) -> float:
        """Share of its filters that goes, in [0, 1]."""
        return 1 - self.after / self.before


@dataclass(frozen=True, eq=False)
class Plan:
    """What a pruning would remove; made by `plan`, carried out by `hrel_ext.pruning.prune`.

    Attributes:
        target: the budget, such as {"macs": 0.4}; None for limits.
        limits: convolution to the filters it is to end with; empty for a budget.
        layers: a `LayerPlan` for every convolution, in the order of the network.
        before: costs of the unpruned network for one sample.
        after: costs of the pruned one.
        latency_ms: median of the unpruned and of the pruned network where the budget is a latency, else None.
        groups: the groups that lose units.
        levels: for each of these groups the numbers of units that the rules allow, descending from all to the last one
            that the plan may use.
        kept: for each of these groups the units that are left.
        scorable: convolutions whose outputs can be scored, those that run once in a forward pass.
    """

    target: Mapping[str, float | str] | None
    limits: Mapping[str, int]
    layers: tuple[LayerPlan, ...]
    before: Cost
    after: Cost
    latency_ms: tuple[float, float] | None
    groups: tuple[Group, ...]
    levels: tuple[tuple[int, ...], ...]
    kept: tuple[int, ...]
    scorable: frozenset[str]

    @property
    def measured(self) -> "Measured | None":
        """How a latency was met; None for other budgets."""
        return self.latency_ms and Measured(max(layer.asked for layer in self.layers), self.latency_ms)

    def scored(self, group: Group) -> tuple[str, ...]:
        """The convolutions of a group that are scored."""
        return tuple(name for name in group.convolutions if name in self.scorable)


def plan(
    model: nn.Module,
    example_inputs: Tensor,
    *,
    target: Mapping[str, float | str] | None = None,
    limits: Mapping[str, int] | None = None,
    residual: str = "inner",
    round_to: int = 1,
    min_channels: int = 1,
    max_ratio: float = 1.0,
    exclude: Collection[str] = (),
) -> Plan:
    """Work out what a pruning would remove, without touching the model.

    A budget is met by one ratio for all groups: a group with n units keeps the smallest number the rules allow that is
    at least (1 - ratio) n. The smallest ratio whose cost is within the budget is taken; then, as long as the budget
    allows, single groups get back the step that took them there, the dearest first, and further steps while more than
    0.02 of the network is missing. A latency is measured on copies of the network,
    by turns with the unpruned one, with one ratio for all groups.

    Args:
        model: the network, on any device; not changed.
        example_inputs: (1, ...) or more samples, to trace it with; a latency is that of this batch.
        target: {"macs": share left}, {"params": share left}, both of the unpruned network and between 0 and 1, or
            {"latency_ms": milliseconds, "device": "cpu" or "cuda"}.
        limits: in place of a target: convolution to the filters it ends with.
        residual: "inner" leaves convolutions alone whose outputs enter a sum of branches; "stream" prunes these too,
            with the same indices for all convolutions of a stream.
        round_to: filters of a convolution that is pruned are a multiple of this.
        min_channels: a convolution that is pruned keeps at least so many filters.
        max_ratio: largest share of a convolution's filters that may go.
        exclude: convolutions that stay whole, with all that are coupled with them.

    Returns:
        The plan.

    Raises:
        ValueError: an argument that breaks a rule; a budget out of reach, with what is in reach; nothing to prune,
            with the reasons.
    """
    return make_plan(model, example_inputs, target, limits, residual, round_to, min_channels, max_ratio, exclude, None)


@dataclass(frozen=True)
class Measured:
    """How a latency was met, which no second measurement repeats: the ratio, and the milliseconds before and after."""

    ratio: float
    latency_ms: tuple[float, float]


def make_plan(
    model: nn.Module,
    example_inputs: Tensor,
    target: Mapping[str, float | str] | None,
    limits: Mapping[str, int] | None,
    residual: str,
    round_to: int,
    min_channels: int,
    max_ratio: float,
    exclude: Collection[str],
    measured: Measured | None,
) -> Plan:
    """`plan`; with what was ``measured`` once, to the same plan as then, without the clock."""
    _check(model, example_inputs, target, limits, residual, round_to, min_channels, max_ratio, exclude)
    if target:  # numbers of NumPy or torch become Python's, which files hold
        target = {name: value if isinstance(value, str) else float(value) for name, value in target.items()}
    network = _Network(model, example_inputs, residual, frozenset(exclude))
    rules = partial(_levels, round_to=round_to, min_channels=min_channels, max_ratio=max_ratio)
    levels = [rules(group) if group.problem is None else (len(group.units),) for group in network.groups]
    if not any(len(allowed) > 1 for allowed in levels):
        reasons = _summary(network.reason(name, levels) for name in network.convolutions)
        raise ValueError(f"there is nothing to prune: {reasons}")
    asked, latency = [0.0] * len(levels), None
    if limits is not None:
        levels, asked = _limited(network, levels, limits)
        kept = [allowed[-1] for allowed in levels]
        if kept == [len(group.units) for group in network.groups]:
            reasons = _summary(network.reason(name, levels) for name in limits)
            raise ValueError(f"limits must leave something to prune: {reasons}")
    elif target and "latency_ms" in target and measured:
        ratio, latency = measured.ratio, measured.latency_ms
        asked, kept = [ratio] * len(levels), _uniform(ratio, levels)
    elif target and "latency_ms" in target:
        ratio, kept, latency = _meet_latency(network, levels, target)
        asked = [ratio] * len(levels)
    else:
        ratio, kept = _meet_cost(network, levels, *next(iter((target or {}).items())))
        asked = [ratio] * len(levels)
    return network.plan(kept, levels, asked, target, limits or {}, latency)


class _Network:
    """A network as numbers: its groups, and its costs as a function of the units that each group keeps."""

    def __init__(self, model: nn.Module, example_inputs: Tensor, residual: str, exclude: Collection[str]) -> None:
        self.model, self.example_inputs = model, example_inputs
        self.convolutions = {n: m for n, m in model.named_modules() if isinstance(m, CONVOLUTIONS)}
        self.runs, positions = _positions(model, example_inputs)
        groups, sizes = find_groups(model, example_inputs)
        groups = [_ruled(group, self.runs, residual, exclude) for group in groups]
        self.groups = _tried(model, example_inputs, groups)
        self.of_layer: dict[str, list[int]] = defaultdict(list)  # convolution to its groups
        for number, group in enumerate(self.groups):
            for name in group.convolutions:
                self.of_layer[name].append(number)
        units: dict[Side, list[tuple[int, int]]] = defaultdict(list)  # side to (group, channels of a unit)
        for number, group in enumerate(self.groups):
            for side, channels in group.channels.items():
                units[side].append((number, channels))
        self._sizes = [
            _LayerSize(name, module, positions.get(name, 0), sizes, units)
            for name, module in _owners(model, {side.layer for side in sizes})
        ]
        self.before = self.cost([len(group.units) for group in self.groups])
        if (counted := count(model, example_inputs)) != self.before:
            raise RuntimeError(f"the costs of the plan must be those of the network, {counted}, got {self.before}")

    def cost(self, kept: Sequence[int]) -> Cost:
        """Costs with so many units left in each group."""
        gone = [len(group.units) - left for group, left in zip(self.groups, kept, strict=True)]
        macs = conv_macs = parameters = 0
        for size in self._sizes:
            of_layer, numbers = size.cost(gone)
            macs += of_layer
            conv_macs += of_layer if size.is_convolution else 0
            parameters += numbers
        return Cost(macs, conv_macs, parameters)

    def removal(self, kept: Sequence[int]) -> dict[str, list[int]]:
        """Convolution to filters that go: of each group the first units, which cost what any units do."""
        removed: dict[str, list[int]] = defaultdict(list)
        for group, left in zip(self.groups, kept, strict=True):
            for unit in group.units[: len(group.units) - left]:
                for name, indices in unit.items():
                    removed[name] += indices
        return removed

    def pruned(self, kept: Sequence[int]) -> nn.Module:
        """A copy of the network without these units."""
        model = copy.deepcopy(self.model)
        remove_filters(model, self.example_inputs, self.removal(kept))
        return model

    def reason(self, name: str, levels: Sequence[Sequence[int]], limits: Collection[str] | None = None) -> str:
        """Why a convolution keeps all its filters."""
        if not self.of_layer[name]:
            return "it takes no part in a forward pass"
        for number in self.of_layer[name]:
            group = self.groups[number]
            if group.problem:
                return group.problem
            if limits is not None and not set(limits) & set(group.convolutions):
                return "limits do not name it"
            if len(levels[number]) == 1:
                width = self.convolutions[name].out_channels
                return f"round_to, min_channels, max_ratio or limits allow no width below its {width} filters"
        return "the budget asks for less than one step of it"

    def plan(
        self,
        kept: Sequence[int],
        levels: Sequence[tuple[int, ...]],
        asked: Sequence[float],
        target: Mapping[str, float | str] | None,
        limits: Mapping[str, int],
        latency_ms: tuple[float, float] | None,
    ) -> Plan:
        """The plan that keeps these units, checked on a copy."""
        after = self.cost(kept)
        if (counted := count(self.pruned(kept), self.example_inputs)) != after:
            raise RuntimeError(f"the costs of the plan must be those of the pruned network, {counted}, got {after}")
        gone = [len(group.units) - left for group, left in zip(self.groups, kept, strict=True)]
        layers = []
        for size in self._sizes:
            if size.name not in self.convolutions:
                continue
            numbers = self.of_layer[size.name]
            before, left = size.out_channels, size.out_channels - size.lost(size.out_units, gone)
            macs_before, parameters_before = size.cost([0] * len(gone))
            macs_after, parameters_after = size.cost(gone)
            reason = self.reason(size.name, levels, None if target else limits) if left == before else None
            group = self.groups[numbers[0]].convolutions[0] if numbers else None
            layers.append(
                LayerPlan(
                    size.name,
                    group,
                    max((asked[number] for number in numbers if self.groups[number].problem is None), default=0.0),
                    before,
                    left,
                    macs_before,
                    macs_after,
                    parameters_before,
                    parameters_after,
                    reason,
                )
            )
        pruned = [number for number, lost in enumerate(gone) if lost]
        return Plan(
            target,
            limits,
            tuple(layers),
            self.before,
            after,
            latency_ms,
            tuple(self.groups[number] for number in pruned),
            tuple(levels[number] for number in pruned),
            tuple(kept[number] for number in pruned),
            frozenset(name for name in self.convolutions if self.runs.get(name) == 1),
        )


class _LayerSize:
    """The cost of one layer as a function of what the groups have lost."""

    def __init__(
        self,
        name: str,
        module: nn.Module | nn.Parameter,
        positions: int,
        sizes: Mapping[Side, int],
        units: Mapping[Side, Sequence[tuple[int, int]]],
    ) -> None:
        self.name = name
        self.is_convolution = isinstance(module, CONVOLUTIONS)
        self.out_units = units.get(Side(name, "out"), ())
        self.in_units = units.get(Side(name, "in"), ())
        self._positions = positions
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):  # the latter run at no counted position
            self.out_channels, self._in_channels = module.out_channels, module.in_channels
            self._blocks, self._kernel = module.groups, math.prod(module.kernel_size)
            self._depthwise = module.groups == module.in_channels == module.out_channels > 1
            self._bias = module.bias is not None
        elif isinstance(module, nn.Linear):
            self.out_channels, self._in_channels = module.out_features, module.in_features
            self._blocks, self._kernel, self._depthwise, self._bias = 1, 1, False, module.bias is not None
        else:
            numbers = [module] if isinstance(module, nn.Parameter) else module.parameters(recurse=False)
            self._numbers = sum(parameter.numel() for parameter in numbers)
            self.out_channels = sizes.get(Side(name, "out"), 1)
            self._in_channels = sizes.get(Side(name, "in"), 1)
            self._kernel = 0  # multiplies nothing that counts

    def lost(self, units: Iterable[tuple[int, int]], gone: Sequence[int]) -> int:
        """Channels that a side has lost."""
        return sum(gone[number] * channels for number, channels in units)

    def cost(self, gone: Sequence[int]) -> tuple[int, int]:
        """Multiply-accumulates for one sample, parameters."""
        out_channels = self.out_channels - self.lost(self.out_units, gone)
        in_channels = self._in_channels - self.lost(self.in_units, gone)
        if not self._kernel:  # one number per channel, or several
            numbers = self._numbers * out_channels // self.out_channels
            return 0, numbers * in_channels // self._in_channels
        weights = out_channels * self._kernel * (1 if self._depthwise else in_channels // self._blocks)
        return self._positions * weights, weights + out_channels * self._bias


def _owners(model: nn.Module, layers: Collection[str]) -> Iterable[tuple[str, nn.Module | nn.Parameter]]:
    """The layers that can lose channels or multiply, and every other parameter by itself."""
    for name, module in model.named_modules():
        if name in layers or isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            yield name, module
        else:
            own = module.named_parameters(recurse=False)
            yield from ((f"{name}.{parameter}" if name else parameter, value) for parameter, value in own)


def _positions(model: nn.Module, example_inputs: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """Layer to its runs in a forward pass, and to its output values per channel and sample, over all runs."""
    runs: dict[str, int] = defaultdict(int)
    positions: dict[str, int] = defaultdict(int)

    def hook(name: str, module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        runs[name] += 1
        width = module.out_channels if isinstance(module, CONVOLUTIONS) else module.out_features
        positions[name] += output[0].numel() // width

    handles = [
        module.register_forward_hook(partial(hook, name))
        for name, module in model.named_modules()
        if isinstance(module, (*CONVOLUTIONS, nn.Linear))
    ]
    try:
        with torch.no_grad(), evaluation_mode(model):
            model(example_inputs.to(next(model.parameters()).device))
    except Exception as error:  # whatever a network raises
        first_line = str(error).partition("\n")[0]
        raise ValueError(
            f"model must run on example_inputs, a tensor of shape {tuple(example_inputs.shape)}, "
            f"got {type(error).__name__}: {first_line}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return runs, positions


def _ruled(group: Group, runs: Mapping[str, int], residual: str, exclude: Collection[str]) -> Group:
    """The group, with a problem if it is not to be pruned."""
    problem = group.problem
    if excluded := [name for name in group.convolutions if name in exclude]:
        problem = "exclude names it" if excluded[0] == group.convolutions[0] else f"exclude names {excluded[0]!r}"
    elif problem is None and group.residual and residual == "inner":
        problem = 'its output enters a sum of branches, which residual="stream" prunes'
    elif problem is None and not any(runs.get(name) == 1 for name in group.convolutions):
        problem = "it runs more than once in a forward pass, so its filters have no one score"
    return replace(group, problem=problem)


def _tried(model: nn.Module, example_inputs: Tensor, groups: Sequence[Group]) -> list[Group]:
    """The groups, with a problem where a copy of the network without one of their units does not compute the same."""

    def problem(tried: Iterable[Group]) -> str | None:
        removed: dict[str, list[int]] = defaultdict(list)
        for group in tried:
            for name, indices in group.units[0].items():
                removed[name] += indices
        try:
            check_removal(model, example_inputs, removed)
        except ValueError as error:
            return str(error)
        return None

    free = [group for group in groups if group.problem is None]
    if problem(free) is None:
        return list(groups)
    return [replace(group, problem=problem([group])) if group.problem is None else group for group in groups]


def _levels(group: Group, *, round_to: int, min_channels: int, max_ratio: float) -> tuple[int, ...]:
    """The numbers of units that a group may keep, all of them first, then descending."""
    total = len(group.units)
    widths = [group.channels[Side(name, "out")] for name in group.convolutions]
    floor = max(1, math.ceil(total * (1 - max_ratio) - 1e-9))  # 0.7 * 10 is above 7 in floating point
    allowed = (
        kept
        for kept in range(total - 1, floor - 1, -1)
        if all(width * kept % round_to == 0 and width * kept >= min_channels for width in widths)
    )
    return (total, *allowed)


def _uniform(ratio: float, levels: Sequence[Sequence[int]]) -> list[int]:
    """The smallest allowed number of units in each group that is at least the share 1 - ratio of all."""
    return [min(kept for kept in allowed if allowed[0] - kept <= ratio * allowed[0] + 1e-9) for allowed in levels]


def _ratios(levels: Sequence[Sequence[int]]) -> list[float]:
    """The ratios at which a group loses another step, ascending."""
    return sorted({1 - kept / allowed[0] for allowed in levels for kept in allowed[1:]})


def _meet_cost(
    network: _Network, levels: Sequence[Sequence[int]], quantity: str, share: Any
) -> tuple[float, list[int]]:
    """The uniform ratio and the units kept that leave just less than a share of the MACs or parameters."""
    attribute = {"macs": "macs", "params": "parameters"}[quantity]
    budget = share * getattr(network.before, attribute)

    def fits(kept: Sequence[int]) -> bool:
        return getattr(network.cost(kept), attribute) <= budget

    ratios = _ratios(levels)
    lowest = _uniform(ratios[-1], levels)
    if not fits(lowest):
        reachable = getattr(network.cost(lowest), attribute) / getattr(network.before, attribute)
        raise ValueError(_unreachable(f"target {quantity}={share}", f"{reachable:.4f} of them", network, levels))
    step = _first(ratios, lambda ratio: fits(_uniform(ratio, levels)))
    kept = _uniform(ratios[step], levels)
    above = _uniform(ratios[step - 1], levels) if step else [allowed[0] for allowed in levels]
    start = list(kept)

    def raised(number: int) -> list[int]:
        higher = levels[number][levels[number].index(kept[number]) - 1]
        return [higher if i == number else left for i, left in enumerate(kept)]

    def give_back(numbers: Iterable[int]) -> bool:
        """Raise the first of these groups that the budget allows, the dearest first: the cheap ones fill the rest."""
        for number in sorted(numbers, key=lambda n: -getattr(network.cost(raised(n)), attribute)):
            if fits(raised(number)):
                kept[:] = raised(number)
                return True
        return False

    while give_back(n for n in range(len(kept)) if kept[n] == start[n] < above[n]):
        pass
    low = (share - BAND) * getattr(network.before, attribute)
    while getattr(network.cost(kept), attribute) < low:  # coarse steps: the ratios may differ by more than one
        if not give_back(n for n in range(len(kept)) if kept[n] < levels[n][0]):
            break
    return ratios[step], kept


def _meet_latency(
    network: _Network, levels: Sequence[Sequence[int]], target: Mapping[str, float | str]
) -> tuple[float, list[int], tuple[float, float]]:
    """The uniform ratio, the units kept, and the latency before and after, in milliseconds."""
    limit_ms, device = float(target["latency_ms"]), str(target.get("device", "cpu"))

    whole, inputs = copy.deepcopy(network.model).to(device), network.example_inputs
    (turns,) = compare_latency([whole], inputs, turns=LONG_TURNS)
    before = statistics.median(turn.median_ms for turn in turns)
    if before <= limit_ms:
        raise ValueError(
            f"target latency_ms={limit_ms:g} must be below the {before:.3g} ms that the network takes on {device}"
        )

    def measure(ratio: float, turns: int) -> float:
        """As a share of the whole network's, by turns with it: what slows the machine down for a while hits both."""
        model = network.pruned(_uniform(ratio, levels)).to(device)
        pairs = zip(*compare_latency([whole, model], inputs, turns=turns), strict=True)
        return before * statistics.median(b.median_ms / a.median_ms for a, b in pairs)

    ratios = _ratios(levels)
    glances: dict[float, float] = {}

    def fits(ratio: float) -> bool:
        glances[ratio] = measure(ratio, TURNS)
        return glances[ratio] <= limit_ms

    if not fits(ratios[-1]) and glances[ratios[-1]] > (1 + LATENCY_TOLERANCE) * limit_ms:
        reachable = f"{glances[ratios[-1]]:.3g} ms on {device}"
        raise ValueError(_unreachable(f"target latency_ms={limit_ms:g}", reachable, network, levels))
    _first(ratios, fits)

    # Of many short measurements the nearest is near by luck as well. Long ones decide, each at the ratio where the
    # straight line from the whole network through the one before it meets the budget.
    measured: dict[float, float] = {}
    ratio = min(glances, key=lambda ratio: abs(glances[ratio] - limit_ms))
    while ratio not in measured and len(measured) < LONG_MEASUREMENTS:
        measured[ratio] = measure(ratio, LONG_TURNS)
        if abs(measured[ratio] - limit_ms) <= LATENCY_TOLERANCE / 4 * limit_ms or measured[ratio] >= before:
            break
        crossing = ratio * (before - limit_ms) / (before - measured[ratio])
        ratio = min(ratios, key=lambda other: abs(other - crossing))
    best = min(measured, key=lambda ratio: abs(measured[ratio] - limit_ms))
    if abs(measured[best] - limit_ms) > LATENCY_TOLERANCE * limit_ms:
        raise ValueError(
            f"target latency_ms={limit_ms:g} must be met within {LATENCY_TOLERANCE:.0%}, got {measured[best]:.3g} ms "
            f"as the nearest of {len(measured)} networks measured on {device}: "
            "the steps of the network are too coarse, or other work disturbs the clock"
        )
    return best, _uniform(best, levels), (before, measured[best])


def _first(ratios: Sequence[float], fits: Callable[[float], bool]) -> int:
    """The index of the smallest ratio that fits, by bisection; the last one is taken to fit."""
    low, high = 0, len(ratios) - 1
    while low < high:
        middle = (low + high) // 2
        if fits(ratios[middle]):
            high = middle
        else:
            low = middle + 1
    return low


def _limited(
    network: _Network, levels: Sequence[tuple[int, ...]], limits: Mapping[str, int]
) -> tuple[list[tuple[int, ...]], list[float]]:
    """Levels down to the limits, and the share that was asked of each group."""
    limited = [allowed[:1] for allowed in levels]
    asked = [0.0] * len(levels)
    named: dict[int, str] = {}
    for name, limit in limits.items():
        numbers = network.of_layer[name]
        if len(numbers) != 1:
            raise ValueError(
                f"limits must name layers whose filters are all coupled in the same way, got {name!r}: "
                + ("they go different ways" if numbers else "it takes no part in a forward pass")
            )
        (number,) = numbers
        group = network.groups[number]
        if group.problem and limit < network.convolutions[name].out_channels:
            raise ValueError(f"limits must name layers that can be pruned, got {name!r}: {group.problem}")
        share = 1 - limit / network.convolutions[name].out_channels
        if number in named and asked[number] != share:
            raise ValueError(
                f"limits must be equal for layers that lose the same filters, got {named[number]}="
                f"{limits[named[number]]} and {name}={limit}"
            )
        named[number], asked[number] = name, share
        width = group.channels[Side(name, "out")]
        limited[number] = levels[number][:1] + tuple(k for k in levels[number][1:] if k * width >= limit)
    return limited, asked


def _unreachable(target: str, reachable: str, network: _Network, levels: Sequence[Sequence[int]]) -> str:
    whole = [name for name in network.convolutions if all(len(levels[n]) == 1 for n in network.of_layer[name])]
    reasons = _summary(f"{name}: {network.reason(name, levels)}" for name in whole) if whole else "no layer"
    return f"{target} is out of reach: {reachable} is the least that the rules allow; not pruned: {reasons}"


def _summary(reasons: Iterable[str]) -> str:
    """The reasons, each once, with the number of layers."""
    counted: dict[str, int] = defaultdict(int)
    for reason in reasons:
        counted[reason] += 1
    return "; ".join(f"{reason} ({number} layers)" if number > 1 else reason for reason, number in counted.items())


def _check(
    model: nn.Module,
    example_inputs: Tensor,
    target: Mapping[str, float | str] | None,
    limits: Mapping[str, int] | None,
    residual: str,
    round_to: int,
    min_channels: int,
    max_ratio: float,
    exclude: Collection[str],
) -> None:
    convolutions = [name for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)]
    if not convolutions:
        raise ValueError("model must have convolutions, got none")
    if any(hasattr(module, "_orig_mod") for module in model.modules()):  # torch.compile hides the layers from hooks
        raise ValueError("model must be what torch.compile was given, got what it made; compile the pruned network")
    if not isinstance(example_inputs, Tensor):
        raise ValueError(f"example_inputs must be a tensor of shape (N, ...), got {type(example_inputs).__name__}")
    if (target is None) == (limits is None):
        raise ValueError("either target or limits must be given, got " + ("both" if limits else "none"))
    if target is not None:
        if not isinstance(target, Mapping):
            raise ValueError(f"target must be a mapping such as {{'macs': 0.4}}, got {target!r}")
        quantity = next((name for name in target if name in BUDGETS), None)
        others = set(target) - {quantity} - ({"device"} if quantity == "latency_ms" else set())
        if quantity is None or others:
            raise ValueError(f"target must name one of {', '.join(BUDGETS)}, got {dict(target)}")
        value: Any = target[quantity]
        if quantity == "latency_ms":
            if not (isinstance(value, Real) and float(value) > 0):
                raise ValueError(f"target latency_ms must be above 0, got {value!r}")
            check_device(cast(str, target.get("device", "cpu")))
        elif not (isinstance(value, Real) and 0 < float(value) < 1):
            raise ValueError(f"target {quantity}, the share that is left, must be above 0 and below 1, got {value!r}")
    if residual not in RESIDUALS:
        raise ValueError(f"residual must be one of {', '.join(RESIDUALS)}, got {residual!r}")
    for argument, value in (("round_to", round_to), ("min_channels", min_channels)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{argument} must be an integer of at least 1, got {value!r}")
    if not (isinstance(max_ratio, Real) and 0 < max_ratio <= 1):
        raise ValueError(f"max_ratio must be above 0 and at most 1, got {max_ratio!r}")
    for name in [*exclude, *(limits or {})]:
        if name not in convolutions:
            argument = "exclude" if name in exclude else "limits"
            raise ValueError(f"{argument} must name convolutions of the model, got {name!r}")
