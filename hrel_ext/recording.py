"""What a run keeps beside its networks, and goes on with when it does: seconds, the information plane, relevances at
the width of the first cycle."""
# SPDX-License-Identifier: MIT

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hrel_ext import _ranks
from hrel_ext.collect import Batch, evaluation_mode, score_forward_pass
from hrel_ext.pruning import Criterion
from hrel_ext.pruning.checkpoint import write_json
from hrel_ext.pruning.resume import Checkpoints
from hrel_ext.recipes import Recipe
from hrel_ext.relevance import relevance
from hrel_ext.zoo.data import Batches

PLANE = "plane.safetensors"


class Clock:
    """Seconds by name, added up over all parts of a run that was interrupted.

    Args:
        states: folder of the checkpoints, which keep the sums.
        going_on: whether there was a part before.
    """

    def __init__(self, states: Path, going_on: bool) -> None:
        self._store = Checkpoints(states / "clock", {})
        folder = self._store.latest() if going_on else None
        known = json.loads((folder / "clock.json").read_text()) if folder else {"parts": 0, "seconds": {}}
        self.parts: int = known["parts"] + 1
        self.seconds: dict[str, float] = known["seconds"]
        self._running: dict[str, float] = {}  # name to the moment from which its seconds are not added up yet
        self.save()

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        self._running[name] = time.perf_counter()
        try:
            yield
        except BaseException:
            if _ranks.num_ranks() == 1:  # ranks of which one has failed must not wait for each other
                with suppress(OSError):  # a full disk may be what ended it
                    self.save()
            raise
        finally:
            self._add_up()
            del self._running[name]

    def save(self) -> None:
        """Keep the seconds until now: a run that is killed loses those since."""
        self._add_up()
        self._store.save(
            lambda folder: write_json(folder / "clock.json", {"parts": self.parts, "seconds": self.seconds})
        )

    def _add_up(self) -> None:
        now = time.perf_counter()
        for name, since in self._running.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + now - since
            self._running[name] = now


class WatchedCriterion(Criterion):
    """A criterion, and the relevance of the same filters at the width that their layer had in the first cycle.

    The width of a layer follows its maps from cycle to cycle, so that relevances of different cycles are measured by
    different rulers; these are not. They decide nothing.

    Attributes:
        number: of the cycle that comes next.
        maps: for a picture of the estimator, of the first mini-batch in the first cycle: "maps/LAYER/F" (N, H, W) of
            the filters of the first layer with the largest and the smallest score, F their numbers; "maps/labels" (N,);
            "maps/sigma" (), the width of the layer.

    Args:
        criterion: what ranks the filters.
        batches: a few mini-batches, the same in every cycle.
        alpha, where: as for the criterion.
        states: folder of the checkpoints; a cycle whose filters are chosen is not scored again.
    """

    def __init__(self, criterion: Criterion, batches: Iterable[Batch], alpha: float, where: str, states: Path) -> None:
        super().__init__()
        self.name = criterion.name
        self.number = 1
        self._criterion, self._batches, self._alpha, self._where = criterion, batches, alpha, where
        self._store = Checkpoints(states / "fixed-widths", {})
        folder = self._store.latest()
        known = json.loads((folder / "relevance.json").read_text()) if folder else {"widths": {}, "cycles": {}}
        self.maps: dict[str, torch.Tensor] = load_file(folder / "maps.safetensors") if folder else {}
        self._widths: dict[str, float] = known["widths"]
        self._cycles: dict[str, dict[str, list[float]]] = known["cycles"]

    @property
    def options(self) -> Mapping[str, object]:
        return self._criterion.options

    def of_cycle(self, number: int) -> Mapping[str, list[float]]:
        """Layer to the relevance of each filter that it had before a cycle, in bits."""
        return self._cycles[str(number)]

    def _measure(self, model, targets, unscored):
        table = self._criterion._measure(model, targets, unscored)
        self._widths |= {
            name: scores.widths.mean().item() for name, scores in table.items() if name not in self._widths
        }
        device = next(model.parameters()).device
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in table}
        with torch.no_grad(), evaluation_mode(model):
            for inputs, labels in self._batches:
                labels = labels.to(device)

                def look(name: str, maps: torch.Tensor, labels: torch.Tensor = labels) -> torch.Tensor:
                    if not self.maps:
                        self.maps = self._example(name, maps, labels, table[name].mean)
                    return relevance(maps, labels, sigma=self._widths[name], alpha=self._alpha)  # (F,)

                seen = score_forward_pass(model, inputs.to(device), targets, self._where, look)
                for name, row in seen.items():
                    rows[name].append(row)
        means = {name: torch.stack(of_layer).mean(dim=0).tolist() for name, of_layer in rows.items()}
        self._cycles[str(self.number)] = means
        known = {"widths": self._widths, "cycles": self._cycles}

        def write(folder: Path) -> None:
            write_json(folder / "relevance.json", known)
            save_file(self.maps, folder / "maps.safetensors")

        self._store.save(write)
        return table

    def _example(
        self, name: str, maps: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        chosen = {f"maps/{name}/{f}": maps[:, f].float().cpu().contiguous() for f in (scores.argmax(), scores.argmin())}
        return {**chosen, "maps/labels": labels.cpu(), "maps/sigma": torch.tensor(self._widths[name])}


class Recorder:
    """The information plane of a run, if the recipe wants one.

    Args:
        recipe, model, seed: of the run.
        file: with the points of a run that goes on; None, or a file that is not there, for none.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, seed: int, file: Path | None) -> None:
        self._model, self._plane = model, None
        if recipe.plane_every is None or _ranks.rank() > 0:  # that of rank 0 goes into the file
            return
        from hrel_ext.report import InformationPlane

        self._plane = InformationPlane(model, every=recipe.plane_every, alpha=recipe.alpha, seed=seed)
        if file and file.exists():
            self.load(file)

    def begin(self, stage: str) -> None:
        if self._plane and stage not in self._plane.stages:
            self._plane.begin(stage)

    def is_at(self, stage: str) -> bool:
        """Whether no later stage has begun."""
        return self._plane is not None and self._plane.stages[-1] == stage

    def record(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        if self._plane:
            self._plane.record(inputs, labels)

    def save(self, file: Path) -> None:
        """Write the points, if there are any."""
        if self._plane and self._plane.num_points:
            self._plane.save(file)

    def load(self, file: Path) -> None:
        self._plane = type(self._plane).resume(self._model, file)


@dataclass
class RecordedBatches:
    """Mini-batches of a stage, whose state is that of the recorder as well: a checkpoint has both of one moment."""

    batches: Batches
    recorder: Recorder
    stage: str

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def for_rank(self, rank: int, num_ranks: int) -> Iterable[Batch]:
        return self.batches.for_rank(rank, num_ranks)

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = self.batches.state_dict()
        with TemporaryDirectory() as folder:
            self.recorder.save(file := Path(folder) / PLANE)
            if file.exists():
                state["plane"] = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.batches.load_state_dict(state)
        if "plane" in state and self.recorder.is_at(self.stage):
            with TemporaryDirectory() as folder:
                (file := Path(folder) / PLANE).write_bytes(state["plane"].numpy().tobytes())
                self.recorder.load(file)
