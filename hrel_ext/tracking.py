"""Scalars of a run for TensorBoard, through Accelerate's tracker: loss, accuracies, filters and costs."""
# SPDX-License-Identifier: MIT

import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available

from hrel_ext.experiment import Observer
from hrel_ext.pruning import Cycle, Epoch
from hrel_ext.recipes import Recipe

FOLDER = "tensorboard"  # in the output of a run


class TensorBoard:
    """Writes what a run tells into ``output / "tensorboard"``, for ``tensorboard --logdir``.

    By epoch, counted from 1 over the whole run: ``train/loss`` and ``validation/loss`` in nats, ``validation/accuracy``
    in [0, 1]. By cycle: ``cycle/validation_accuracy``, ``cycle/macs``, ``cycle/parameters`` and ``filters/LAYER``. By
    epoch, when the run is finished: ``test/accuracy`` of the whole and of the pruned network. A run that goes on after
    an interruption adds a file, in which what it finds done has the steps and values that it had.

    Args:
        output: of the run.
        recipe: of the run, whose epochs number the steps.
        observer: told of everything as well.

    Raises:
        ImportError: TensorBoard is not installed.
        ValueError: the run has several processes.
    """

    def __init__(self, output: Path, recipe: Recipe, observer: Observer) -> None:
        if not is_tensorboard_available():
            raise ImportError("the scalars need tensorboard: pip install 'hrel_ext[tensorboard]'")
        # Accelerate would make a process group of its own.
        if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
            raise ValueError(f"--tensorboard must be given to a run of one process, got WORLD_SIZE = {processes}")
        self._recipe, self._told = recipe, observer
        self._begun, self._cycles = 0, 0  # epochs before the stage, cycles that are done
        self._accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(output))
        self._is_open = False

    @property
    def observer(self) -> Observer:
        """For `hrel_ext.experiment.run`."""
        return Observer(self._on_stage, self._on_epoch, self._on_cycle, self._told.progress)

    def finish(self, report: dict[str, Any]) -> None:
        """Write the accuracies on the test split, and close the file.

        Args:
            report: what `hrel_ext.experiment.run` returned.
        """
        cycles = len(report["cycles"])
        last = self._epochs_before(cycles + 1) + self._recipe.final.epochs
        for side, step in (("before", self._recipe.baseline.epochs), ("after", last)):
            self._accelerator.log({"test/accuracy": report[side]["test_accuracy"]}, step=step)
        self._accelerator.end_training()

    def _epochs_before(self, cycle: int) -> int:
        return self._recipe.baseline.epochs + (cycle - 1) * self._recipe.cycle.epochs

    def _on_stage(self, name: str, epochs: int) -> None:
        if not self._is_open:  # only now, when the run has passed its checks: a mistake leaves no folder
            self._accelerator.init_trackers(FOLDER)
            self._is_open = True
        self._begun = 0 if name == "baseline" else self._epochs_before(self._cycles + 1)
        self._told.on_stage(name, epochs)

    def _on_epoch(self, epoch: Epoch) -> None:
        scalars = {
            "train/loss": epoch.loss,
            "validation/loss": epoch.validation.loss,
            "validation/accuracy": epoch.validation.accuracy,
        }
        self._accelerator.log(scalars, step=self._begun + epoch.number)
        self._told.on_epoch(epoch)

    def _on_cycle(self, cycle: Cycle) -> None:
        self._cycles = cycle.number
        scalars = {
            "cycle/validation_accuracy": cycle.accuracy,
            "cycle/macs": cycle.cost.macs,
            "cycle/parameters": cycle.cost.parameters,
            **{f"filters/{name}": count for name, count in cycle.filters.items()},
        }
        self._accelerator.log(scalars, step=cycle.number)
        self._told.on_cycle(cycle)
