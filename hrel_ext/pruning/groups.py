"""Which channels of a network must go together, and their removal: Torch-Pruning's graph, read once and cut once."""
# SPDX-License-Identifier: MIT

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning._helpers import _HybridIndex  # what the index maps of its graph take
from torch_pruning.ops import OPTYPE
from torch_pruning.pruner.function import BasePruningFunc
from torch_pruning.utils import flatten_as_list

from hrel_ext.collect import evaluation_mode
from hrel_ext.zoo.models import Shortcut

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MIXERS = (nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention, nn.LSTM)  # an output depends on several channels


class Side(NamedTuple):
    """The channels of a layer that come in, or those that go out; of a batch norm or a depthwise convolution both."""

    layer: str
    direction: str  # "in" or "out"


@dataclass(frozen=True, eq=False)
class Group:
    """Convolutions whose channels go together, in units: the smallest sets of channels that can go.

    A unit is one channel of every convolution of a residual stream, say, or the channel at one position in each of the
    groups of a grouped convolution. All units of a group cost the same.

    Attributes:
        units: for each unit, convolution to the indices of its filters, ascending; in the order of the first one.
        channels: side of a layer to how many of its channels a unit takes.
        residual: whether the channels enter a sum of two branches.
        problem: why no unit can be removed; None if one can.
    """

    units: tuple[Mapping[str, tuple[int, ...]], ...]
    channels: Mapping[Side, int]
    residual: bool
    problem: str | None

    @property
    def convolutions(self) -> tuple[str, ...]:
        """The names, the first one first; it names the group."""
        return tuple(self.units[0])


def find_groups(model: nn.Module, example_inputs: Tensor) -> tuple[list[Group], dict[Side, int]]:
    """The groups of coupled convolutions of a network, and the channels of every side that takes part in one.

    Args:
        model: the network; traced in eval mode, not changed.
        example_inputs: (1, ...) or more samples, to trace it with.

    Returns:
        The groups in the order of the network, each channel of each traced convolution in one of them; side to its
        number of channels.
    """
    with traceable(model):
        graph = _Graph(model, example_inputs)
        names = [name for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)]
        parts = _Partition()
        sizes: dict[Side, int] = {}
        residual, problems = set(), {}
        for name in names:
            if name not in graph.nodes:
                continue
            width = graph.nodes[name].module.out_channels
            sizes[Side(name, "out")] = width
            if all((Side(name, "out"), index) in parts for index in range(width)):
                continue  # reached from an earlier convolution, and what reaches it is reached from it
            for reached in graph.reach(name, range(width)):
                for index, root in reached.pairs:
                    channel = (Side(name, "out"), root)
                    if reached.is_output:
                        problems[channel] = "its channels are outputs of the network"
                    if reached.is_sum:
                        residual.add(channel)
                    if reached.side is None:
                        parts.join(channel, channel)
                    elif 0 <= index < reached.size:
                        sizes[reached.side] = reached.size
                        parts.join(channel, (reached.side, index))
                    else:
                        problems[channel] = f"Torch-Pruning cannot follow its channels into {reached.side.layer!r}"
        for side, size in sizes.items():
            module = graph.nodes[side.layer].module
            if blocks := _blocks(module, side):
                for index in range(size):  # each block must lose the same positions
                    parts.join((side, index), (side, index % (size // blocks)))
            if problem := _problem(module):
                problems[(side, 0)] = problem
                for index in range(size):
                    parts.join((side, index), (side, 0))
    return _groups(parts, names, residual, problems), sizes


def remove_filters(
    model: nn.Module,
    example_inputs: Tensor,
    removed: Mapping[str, Sequence[int]],
    *,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Remove filters from a network in place, and what depends on them in other layers (Torch-Pruning's graph).

    Modes and ``requires_grad`` stay as they were; weights that stay keep every bit.

    Args:
        model: the network, on any device.
        example_inputs: (1, ...) or more samples, to trace it with.
        removed: convolution to the indices of its filters that go, in the numbering of the network as it is. What is
            coupled with them goes too, whether it is named or not.
        optimizer: of the parameters; its state, such as momentum, is cut along with them, and it stays valid.

    Raises:
        ValueError: the indices would leave a layer without channels or the groups of a convolution unequal, or filters
            of a named layer would go that are not named. Nothing is changed then.
    """
    _remove(model, example_inputs, removed, optimizer)


def check_removal(model: nn.Module, example_inputs: Tensor, removed: Mapping[str, Sequence[int]]) -> None:
    """Remove filters from a copy of a network, and see that the copy computes what it should.

    It should compute what the whole network does when nothing reads the channels that went. Where a norm mixes
    channels (group and layer norm) that is not so, and the copy has only to run.

    Args:
        model: the network; not changed.
        example_inputs: (N, ...), sets the shape of the random inputs that are compared.
        removed: as in `remove_filters`.

    Raises:
        ValueError: the copy does not run, or computes something else; says what is wrong.
    """
    pruned, deaf = copy.deepcopy(model), copy.deepcopy(model)
    cut = _remove(pruned, example_inputs, removed)
    inputs = torch.randn(example_inputs.shape, generator=torch.Generator().manual_seed(0), dtype=example_inputs.dtype)
    inputs = inputs.to(next(model.parameters()).device)
    mixed = any(isinstance(module, _MIXERS) for module in (_layer(deaf, side.layer) for side in cut))
    _ignore(deaf, cut)
    with torch.no_grad(), evaluation_mode(pruned), evaluation_mode(deaf):
        try:
            outputs = flatten_as_list(pruned(inputs))
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"the network does not run without it ({str(error).splitlines()[0]})") from error
        for got, expected in zip(outputs, flatten_as_list(deaf(inputs)), strict=True):
            tolerance = torch.finfo(expected.dtype).eps ** 0.5 * float(expected.abs().max())
            if not mixed and not torch.allclose(got, expected, rtol=0, atol=tolerance, equal_nan=True):
                raise ValueError("Torch-Pruning does not find what reads its channels")


class _ShortcutPruner(BasePruningFunc):
    """Tells Torch-Pruning that the two sides of a `Shortcut` lose channels independently."""

    def prune_out_channels(self, layer: Shortcut, idxs: Sequence[int]) -> Shortcut:
        layer.remove(outputs=idxs)
        return layer

    def prune_in_channels(self, layer: Shortcut, idxs: Sequence[int]) -> Shortcut:
        layer.remove(inputs=idxs)
        return layer

    def get_out_channels(self, layer: Shortcut) -> int:
        return len(layer.source)

    def get_in_channels(self, layer: Shortcut) -> int:
        return layer.in_channels


class _Reached(NamedTuple):
    """What the removal of some channels of a root does at one node of the graph."""

    node: Any
    handler: Any  # of one of Torch-Pruning's pruners, a method
    side: Side | None  # None for a node without channels of its own, such as a sum
    size: int  # channels of the side
    pairs: set[tuple[int, int]]  # index here, index at the root
    is_sum: bool
    is_output: bool


class _Graph:
    """Torch-Pruning's dependency graph, by the names of the layers."""

    def __init__(self, model: nn.Module, example_inputs: Tensor) -> None:
        _check_weights(model)
        device = next(model.parameters()).device
        # The tuple matters: given a bare tensor, the tracer first tries to unpack it into its samples. An output that
        # is multiplied by one ends in a node of its own, whatever layer it comes from.
        try:
            self._graph = torch_pruning.DependencyGraph().build_dependency(
                model,
                (example_inputs.to(device),),
                customized_pruners={Shortcut: _ShortcutPruner()},
                output_transform=lambda outputs: [output * 1 for output in flatten_as_list(outputs)],
                verbose=False,
            )
        except Exception as error:  # whatever a network or the tracer raises
            raise ValueError(
                f"model must be a network that Torch-Pruning can trace, got {type(error).__name__}: {error}"
            ) from error
        names = {module: name for name, module in model.named_modules()}
        self._names = {**names, **{parameter: name for parameter, name in self._graph._param_to_name.items()}}
        self.nodes = {self._names[m]: node for m, node in self._graph.module2node.items() if m in self._names}

    def reach(self, name: str, indices: Iterable[int]) -> Iterator[_Reached]:
        """Every node that the removal of these filters of a convolution reaches, the convolution first.

        As Torch-Pruning's ``get_pruning_group``, which keeps one index of the root for each channel where several lead
        to it.
        """
        if name not in self.nodes:
            raise ValueError(f"layer {name!r} must take part in a forward pass of the model to be pruned")
        root = self.nodes[name]
        pairs: dict[tuple[Any, Callable[..., Any]], set[_HybridIndex]] = defaultdict(set)
        stack = [(root, self._pruner(root).prune_out_channels, [_HybridIndex(i, i) for i in indices])]
        while stack:
            node, handler, reached = stack.pop()
            fresh = [index for index in reached if index not in pairs[node, handler]]
            pairs[node, handler].update(fresh)
            for dependency in node.dependencies if fresh else ():
                if dependency.is_triggered_by(handler):
                    mapped = fresh
                    for mapping in dependency.index_mapping:
                        mapped = mapping(mapped) if mapping is not None else mapped
                    stack.append((dependency.target, dependency.handler, mapped))
        for (node, handler), indices_there in pairs.items():
            direction = "out" if handler == self._pruner(node).prune_out_channels else "in"
            size = self._graph.get_out_channels(node) if direction == "out" else self._graph.get_in_channels(node)
            layer = self._names.get(node.module)
            yield _Reached(
                node,
                handler,
                side=None if layer is None or size is None else Side(layer, direction),
                size=size,
                pairs={(index.idx, index.root_idx) for index in indices_there},
                is_sum=node.type == OPTYPE.ELEMENTWISE and _is_sum(node),
                is_output=node.type == OPTYPE.OUTPUT,
            )

    def _pruner(self, node: Any) -> Any:
        return self._graph.get_pruner_of_module(node.module)


def _remove(
    model: nn.Module,
    example_inputs: Tensor,
    removed: Mapping[str, Sequence[int]],
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[Side, list[int]]:
    """What `remove_filters` does; side of a layer to the channels that it lost."""
    with traceable(model):
        graph = _Graph(model, example_inputs)
        cuts: dict[Side, set[int]] = defaultdict(set)
        at: dict[Side, _Reached] = {}
        for name, indices in removed.items():
            for reached in graph.reach(name, indices) if indices else ():
                if reached.side is not None:
                    cuts[reached.side].update(index for index, _ in reached.pairs)
                    at[reached.side] = reached
        for side, cut in cuts.items():
            _check_cut(at[side], cut, removed)
        carried = _Carried(optimizer)
        for side, cut in cuts.items():
            node, handler = at[side].node, at[side].handler
            handler.__self__.pruning_dim = node.pruning_dim
            if isinstance(node.module, nn.Parameter):
                owner, _, attribute = side.layer.rpartition(".")
                carried.cut_parameter(model.get_submodule(owner), attribute, handler, sorted(cut))
            else:
                carried.cut(node.module, handler, sorted(cut))
        carried.give_back()
    return {side: sorted(cut) for side, cut in cuts.items()}


def _ignore(model: nn.Module, cut: Mapping[Side, Sequence[int]]) -> None:
    """Let nothing read these channels: the weights that do become zero, in place."""
    for side, channels in cut.items():
        module = _layer(model, side.layer)
        if side.direction == "out":
            continue
        if isinstance(module, Shortcut):
            module.source[torch.isin(module.source, torch.tensor(channels, device=module.source.device))] = -1
        elif isinstance(module, TRANSPOSED):
            module.weight.detach()[channels] = 0
        elif isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            blocks, columns = getattr(module, "groups", 1), module.weight.shape[1]
            rows = module.weight.shape[0] // blocks
            for block, column in (divmod(channel, columns) for channel in channels):
                module.weight.detach()[block * rows : (block + 1) * rows, column] = 0


def _layer(model: nn.Module, name: str) -> nn.Module | nn.Parameter:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


class _Partition:
    """Sets of things that belong together (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}

    def __contains__(self, thing: object) -> bool:
        return thing in self._parent

    def find(self, thing: Any) -> Any:
        parent = self._parent
        parent.setdefault(thing, thing)
        while parent[thing] != thing:
            parent[thing] = thing = parent[parent[thing]]
        return thing

    def join(self, one: Any, other: Any) -> None:
        self._parent[self.find(other)] = self.find(one)

    def sets(self) -> dict[Any, list[Any]]:
        found: dict[Any, list[Any]] = defaultdict(list)
        for thing in self._parent:
            found[self.find(thing)].append(thing)
        return found


class _Carried:
    """Cuts layers, and the state that an optimizer holds of their parameters in the same way."""

    def __init__(self, optimizer: torch.optim.Optimizer | None) -> None:
        self._optimizer = optimizer
        self._state = dict(optimizer.state) if optimizer else {}
        self._successor: dict[nn.Parameter, nn.Parameter] = {}

    def cut(self, layer: nn.Module, handler: Callable[..., Any], indices: list[int]) -> None:
        before: dict[str, Any] = dict(layer._parameters)
        shadows = {}
        for key in sorted({key for p in before.values() if p is not None for key in self._shaped(p)}):
            shadows[key] = copy.copy(layer)  # with tensors of the optimizer in the places of the weights
            shadows[key]._parameters = {
                name: p if p is None else nn.Parameter(self._shaped(p).get(key, p.detach()), requires_grad=False)
                for name, p in before.items()
            }
            shadows[key]._buffers = dict(layer._buffers)
        handler(layer, indices)
        for shadow in shadows.values():
            handler(shadow, indices)
        for name, old in before.items():
            new: Any = layer._parameters[name]
            if new is not old:
                self._replace(
                    old, new, {key: cast(Tensor, shadow._parameters[name]).detach() for key, shadow in shadows.items()}
                )

    def cut_parameter(self, owner: nn.Module, name: str, handler: Callable[..., Any], indices: list[int]) -> None:
        old = getattr(owner, name)
        new = handler(old, indices)
        setattr(owner, name, new)
        shadows = {key: nn.Parameter(value, requires_grad=False) for key, value in self._shaped(old).items()}
        self._replace(old, new, {key: handler(shadow, indices).detach() for key, shadow in shadows.items()})

    def give_back(self) -> None:
        """Let the optimizer have the new parameters and their state."""
        if self._optimizer:
            for group in self._optimizer.param_groups:
                group["params"] = [self._latest(parameter) for parameter in group["params"]]
            self._optimizer.state.clear()
            self._optimizer.state.update(self._state)

    def _shaped(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self._state.get(parameter, {})
        return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape and v.dim()}

    def _replace(self, old: nn.Parameter, new: nn.Parameter, cut: Mapping[str, Tensor]) -> None:
        if old in self._state:
            shaped = self._shaped(old)
            self._state[new] = {k: cut[k] if k in shaped else v for k, v in self._state.pop(old).items()}
        self._successor[old] = new

    def _latest(self, parameter: nn.Parameter) -> nn.Parameter:
        while parameter in self._successor:
            parameter = self._successor[parameter]
        return parameter


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Let the tracer see all of a model; give back modes and ``requires_grad``, also of parameters that are new."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with evaluation_mode(model), torch.enable_grad():  # tracing follows the gradients and leaves eval mode behind
            model.requires_grad_(True)  # a frozen layer would be invisible to the tracer
            yield
    finally:
        for name, parameter in model.named_parameters():  # new parameters are born trainable
            parameter.requires_grad_(trainable[name])


def _check_weights(model: nn.Module) -> None:
    """Refuse weights that cannot be cut layer by layer: those that are computed, and a parameter of two modules."""
    owners: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)) and "weight" not in module._parameters:
            raise ValueError(
                f"model must hold its weights as parameters, got layer {name!r}, whose weight is computed (weight "
                "norm, another parametrization or a mask): make it permanent first"
            )
        for key, parameter in module.named_parameters(prefix=name, recurse=False):
            if parameter in owners:
                raise ValueError(
                    f"model must hold each parameter in one module, got {key!r}, which is {owners[parameter]!r} as well"
                )
            owners[parameter] = key


def _is_sum(node: Any) -> bool:
    """Whether a node adds two branches of the network: a parameter that is added is none."""
    name = node.grad_fn.name() if node.grad_fn is not None else ""
    branches = [i for i in node.inputs if i.type != OPTYPE.PARAMETER]
    return name.startswith(("AddBackward", "SubBackward")) and len(branches) > 1


def _blocks(module: nn.Module, side: Side) -> int:
    """The blocks of channels that must stay of equal size; 0 where channels are free."""
    if isinstance(module, CONVOLUTIONS) and 1 < module.groups:
        return 0 if module.groups == module.in_channels == module.out_channels else module.groups
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    return 0


def _problem(module: nn.Module) -> str | None:
    """Why Torch-Pruning cannot cut a layer; None if it can."""
    if isinstance(module, TRANSPOSED) and module.groups > 1:
        return "it meets a grouped transposed convolution"
    if isinstance(module, CONVOLUTIONS) and module.groups == module.out_channels != module.in_channels > 1:
        if module.groups > 1:
            return "it meets a convolution with one filter per group that reads several channels"
    return None


def _check_cut(reached: _Reached, indices: set[int], removed: Mapping[str, Sequence[int]]) -> None:
    side, size = cast(Side, reached.side), reached.size
    if out := [index for index in indices if not 0 <= index < size]:
        raise ValueError(f"removed must name channels of {side.layer!r} below {size}, got {min(out, key=abs)}")
    if len(indices) >= size:
        raise ValueError(f"removed must leave at least one channel in every layer, got all {size} of {side.layer!r}")
    if side.direction == "out" and side.layer in removed and indices != set(removed[side.layer]):
        more = sorted(indices - set(removed[side.layer]))
        raise ValueError(f"removed must name the filters of {side.layer!r} that go with the others, {more} are missing")
    if blocks := _blocks(reached.node.module, side):
        width = size // blocks
        if len(indices) != blocks * len({index % width for index in indices}):
            raise ValueError(
                f"removed must take the same positions from each of the {blocks} groups of {side.layer!r}, "
                f"got {sorted(indices)} ({side.direction} channels)"
            )


def _groups(
    parts: _Partition, names: Sequence[str], residual: set[Any], problems: Mapping[tuple[Side, int], str]
) -> list[Group]:
    """Units with the same sides, flags and problem, together."""
    order = {name: position for position, name in enumerate(names)}
    flagged = {parts.find(channel) for channel in residual}
    named_problems = {parts.find(channel): problem for channel, problem in problems.items()}
    kinds: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for representative, members in parts.sets().items():
        filters: dict[str, list[int]] = defaultdict(list)
        for side, index in members:
            if side.direction == "out" and side.layer in order:
                filters[side.layer].append(index)
        unit = {name: tuple(sorted(filters[name])) for name in sorted(filters, key=order.__getitem__)}
        count = Counter(side for side, _ in members)
        kind = (frozenset(count.items()), representative in flagged, named_problems.get(representative))
        kinds[kind].append(unit)
    groups = []
    for (count, is_residual, problem), units in kinds.items():
        units.sort(key=lambda unit: next(iter(unit.values())))
        if problem is None and len(units) == 1:
            problem = "its channels can only go all at once"
        groups.append(Group(tuple(units), dict(count), is_residual, problem))
    return sorted(groups, key=lambda g: (order[g.convolutions[0]], g.units[0][g.convolutions[0]]))
