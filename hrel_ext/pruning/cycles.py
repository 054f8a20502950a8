"""The cycles of a pruning run: what each one did, and the state between two of them, as it stands on disk."""
# SPDX-License-Identifier: MIT

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from hrel_ext._files import write_atomically
from hrel_ext.collect import Batch
from hrel_ext.pruning.cost import Cost
from hrel_ext.pruning.criteria import FilterScores
from hrel_ext.pruning.groups import remove_filters
from hrel_ext.pruning.planning import Measured
from hrel_ext.pruning.state import tensors_of
from hrel_ext.scores import PARTS, LayerScores

_STATE, _TENSORS, _OPTIMIZER, _BATCHES = "state.json", "tensors.safetensors", "optimizer.bin", "batches.bin"


@dataclass(frozen=True, eq=False)
class Cycle:
    """What one cycle did. Filters are counted and numbered as in the unpruned network.

    Attributes:
        number: 1 for the first cycle.
        scores: layer to the `LayerScores` (of another criterion than HRel: `FilterScores`) of the filters it had before
            the cycle, in ascending order of their indices; only of the layers that lose filters in this cycle.
        removed: layer to the indices that went, lowest score first; layers of one group lose theirs together.
        kept: layer to the indices that are left, ascending.
        accuracy: what ``evaluate`` returned after retraining; None without ``evaluate``.
        cost: of the network after the cycle, for one sample.
    """

    number: int
    scores: Mapping[str, LayerScores | FilterScores]
    removed: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, tuple[int, ...]]
    accuracy: float | None
    cost: Cost

    @property
    def filters(self) -> dict[str, int]:
        """Layer to the number of filters left."""
        return {name: len(kept) for name, kept in self.kept.items()}


@dataclass(frozen=True, eq=False)
class Decision:
    """What a cycle is about to remove, and the scores that say so."""

    number: int
    scores: Mapping[str, LayerScores | FilterScores]
    removed: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class RunState:
    """What a run needs to go on: the network as it is between two cycles, and how it came there.

    Attributes:
        measured: how the plan met its latency.
        start: what ``evaluate`` returned before the first cycle, if it was asked.
        cycles: those that are done.
        decision: of the cycle that has begun, if its filters are chosen.
    """

    measured: Measured | None
    start: float | None
    cycles: Sequence[Cycle]
    decision: Decision | None

    def write(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, batches: Iterable[Batch], folder: Path
    ) -> None:
        """Put this state into a folder, with that of the network, the optimizer, the batches and torch's generator."""
        state = {
            "measured": self.measured and asdict(self.measured),
            "start": self.start,
            "cycles": [
                {
                    "number": cycle.number,
                    "removed": cycle.removed,
                    "kept": cycle.kept,
                    "accuracy": cycle.accuracy,
                    "cost": asdict(cycle.cost),
                }
                for cycle in self.cycles
            ],
            "decision": self.decision and {"number": self.decision.number, "removed": self.decision.removed},
        }
        (folder / _STATE).write_text(json.dumps(state))
        tensors = {f"model/{name}": tensor for name, tensor in tensors_of(model).items()}
        tensors |= score_tensors([*self.cycles, self.decision] if self.decision else self.cycles)
        tensors["generator"] = torch.get_rng_state()  # a shuffling DataLoader draws from it
        save_file(tensors, folder / _TENSORS)
        if optimizer:
            torch.save(optimizer.state_dict(), folder / _OPTIMIZER)
        if hasattr(batches, "state_dict"):
            torch.save(batches.state_dict(), folder / _BATCHES)

    @classmethod
    def read(cls, folder: Path) -> "RunState":
        """The state in a folder."""
        tensors = load_file(folder / _TENSORS)
        state = json.loads((folder / _STATE).read_text())
        measured, decision = state["measured"], state["decision"]
        return cls(
            measured and Measured(measured["ratio"], tuple(measured["latency_ms"])),
            state["start"],
            [
                Cycle(
                    row["number"],
                    _scores(tensors, row["number"]),
                    _tuples(row["removed"]),
                    _tuples(row["kept"]),
                    row["accuracy"],
                    Cost(**row["cost"]),
                )
                for row in state["cycles"]
            ],
            decision
            and Decision(decision["number"], _scores(tensors, decision["number"]), _tuples(decision["removed"])),
        )


def restore(
    folder: Path,
    model: nn.Module,
    example_inputs: Tensor,
    removed: Mapping[str, Sequence[int]],
    optimizer: torch.optim.Optimizer | None,
    batches: Iterable[Batch],
) -> None:
    """Cut the unpruned network, and give it, the optimizer, the batches and the generator the state in a folder."""
    tensors = load_file(folder / _TENSORS)
    if removed := {name: indices for name, indices in removed.items() if indices}:
        remove_filters(model, example_inputs, removed, optimizer=optimizer)
    prefix = "model/"
    model.load_state_dict({name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)})
    torch.set_rng_state(tensors["generator"])
    if optimizer:
        optimizer.load_state_dict(torch.load(folder / _OPTIMIZER, weights_only=True))
    if (folder / _BATCHES).exists():
        cast(Any, batches).load_state_dict(torch.load(folder / _BATCHES, weights_only=True))


def score_tensors(cycles: Iterable[Cycle | Decision]) -> dict[str, Tensor]:
    """The scores of cycles by name, such as ``scores/2/conv1/per_batch`` (B, F), as they stand in files."""
    return {
        f"scores/{cycle.number}/{layer}/{part}": getattr(scores, part).contiguous()
        for cycle in cycles
        for layer, scores in cycle.scores.items()
        for part in PARTS
        if getattr(scores, part, None) is not None
    }


def write_scores(path: Path, cycles: Iterable[Cycle], others: Mapping[str, Tensor]) -> None:
    """Write the scores of cycles, and other tensors, to one safetensors file, which appears whole or not at all: see
    `score_tensors`."""
    content = save({**score_tensors(cycles), **others})
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content))


def _scores(tensors: Mapping[str, Tensor], number: int) -> dict[str, LayerScores | FilterScores]:
    """Of one cycle; those of a criterion other than HRel have no widths."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if name.startswith(start := f"scores/{number}/"):
            layer, part = name[len(start) :].rsplit("/", 1)
            parts[layer][part] = tensor
    return {layer: (LayerScores if "widths" in of else FilterScores)(**of) for layer, of in parts.items()}


def _tuples(lists: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(indices) for name, indices in lists.items()}
