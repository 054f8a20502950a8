"""Runs a recipe: train, prune in cycles, train again; measures both networks and writes everything down."""
# SPDX-License-Identifier: MIT

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from hrel_ext._ops import build_info
from hrel_ext.collect import Batch
from hrel_ext.pruning import (
    Cycle,
    Epoch,
    Training,
    check_device,
    check_schedule,
    count,
    evaluate,
    measure_latency,
    prune,
    save_pruned,
    train,
)
from hrel_ext.pruning.checkpoint import write_json
from hrel_ext.recipes import Recipe, Stage
from hrel_ext.zoo.data import Batches, Split, Splits
from hrel_ext.zoo.models import MODELS

EVALUATION_BATCH = 500  # samples; only memory and speed depend on it
LATENCY_BATCH = 100  # samples


@dataclass
class Observer:
    """What a run tells while it goes on; every default is silent."""

    on_stage: Callable[[str, int], None] = lambda name, epochs: None  # name of the stage, epochs it will take
    on_epoch: Callable[[Epoch], None] = lambda epoch: None
    on_cycle: Callable[[Cycle], None] = lambda cycle: None
    progress: Callable[[Iterable[Batch]], Iterable[Batch]] = lambda batches: batches


@dataclass
class _Clock:
    """Seconds by name, added up."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run(
    recipe: Recipe,
    splits: Splits,
    *,
    seed: int,
    device: str,
    output: Path,
    command: str,
    observer: Observer | None = None,
) -> dict[str, object]:
    """Run a recipe and write model.safetensors, model.pt, plan.json and report.json into ``output``.

    Every epoch that is kept, of the whole and of the pruned network, is chosen on the validation split. The test split
    is read twice: once for the whole network, once for the pruned one.

    Args:
        recipe: what to train, prune and retrain.
        splits: its data.
        seed: of the weights, of the order of the samples and of the training.
        device: "cpu" or "cuda".
        output: folder, made if it is not there.
        command: how to repeat the run; goes into the report.
        observer: told of stages, epochs and cycles.

    Returns:
        The content of report.json; times in seconds and ms, accuracies in [0, 1], relevances in bits.

    Raises:
        ValueError: a recipe that does not fit its network or device, before any training.
    """
    observer, clock = observer or Observer(), _Clock()
    check_device(device)
    torch.manual_seed(seed)
    model = MODELS[recipe.model]()
    check_schedule(model, recipe.limits, recipe.shares, recipe.scored)
    output.mkdir(parents=True, exist_ok=True)
    model.to(device)
    splits = splits.to(device)
    example = splits.train.images[:1]
    validation = Batches(splits.validation, EVALUATION_BATCH)

    def train_stage(stage: Stage, number: int) -> Training:
        return train(
            model,
            Batches(splits.train, recipe.batch_size, seed=seed + number, drop_last=True),
            validation,
            epochs=stage.epochs,
            learning_rate=stage.learning_rate,
            milestones=stage.milestones,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            seed=seed,
            device=device,
            on_epoch=observer.on_epoch,
        )

    def retrain(_: nn.Module, number: int) -> None:
        observer.on_stage(f"cycle {number}", recipe.cycle.epochs)
        with clock.time("retrain"):
            train_stage(recipe.cycle, number)

    with clock.time("total"):
        observer.on_stage("baseline", recipe.baseline.epochs)
        with clock.time("baseline"):
            trained = train_stage(recipe.baseline, 0)
        before = _measure(model, splits.test, trained)
        with clock.time("score and prune, retraining included"):
            result = prune(
                model,
                Batches(splits.train, recipe.batch_size, seed=seed, drop_last=True),
                example,
                limits=recipe.limits,
                shares=recipe.shares,
                retrain=retrain,
                evaluate=lambda pruned: evaluate(pruned, validation).accuracy,
                scored=recipe.scored,
                sigma=recipe.sigma,
                alpha=recipe.alpha,
                on_cycle=observer.on_cycle,
                progress=observer.progress,
            )
        observer.on_stage("final", recipe.final.epochs)
        with clock.time("final"):
            retrained = train_stage(recipe.final, len(result.cycles) + 1)
        after = _measure(model, splits.test, retrained)

    report = {
        "command": command,
        "recipe": asdict(recipe),
        "seed": seed,
        "device": device,
        "environment": environment(),
        "samples": {name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
        "filters": {"before": dict(result.original), "after": result.cycles[-1].filters},
        "before": before,
        "after": after,
        "test_accuracy_drop_points": 100 * (before["test_accuracy"] - after["test_accuracy"]),
        "cycles": [_cycle_row(cycle) for cycle in result.cycles],
        "seconds": clock.seconds,
    }
    save_pruned(
        output,
        model,
        result,
        input_shape=tuple(example.shape[1:]),
        model_name=recipe.model,
        recipe=report["recipe"],
        environment=report["environment"],
        seed=seed,
        test_accuracy=after["test_accuracy"],
        validation_accuracy=after["validation_accuracy"],
    )
    write_json(output / "report.json", report)
    return report


def environment() -> dict[str, object]:
    """The machine, the versions and the kernels of a run."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_pruning": version("torch-pruning"),
        "hrel_ext": build_info(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _measure(model: nn.Module, test: Split, training: Training) -> dict[str, float]:
    """Costs, latency and accuracies of a trained network; reads the test split once."""
    latency = measure_latency(model, test.images[:LATENCY_BATCH])
    return {
        **asdict(count(model, test.images[:1])),
        "latency_ms": latency.median_ms,
        "latency_batch_size": latency.batch_size,
        "latency_threads": latency.threads,
        "chosen_epoch": training.best.number,
        "validation_accuracy": training.best.validation.accuracy,
        "test_accuracy": evaluate(model, Batches(test, EVALUATION_BATCH)).accuracy,
    }


def _cycle_row(cycle: Cycle) -> dict[str, object]:
    return {
        "cycle": cycle.number,
        "filters": cycle.filters,
        "validation_accuracy": cycle.accuracy,
        "removed": {name: list(indices) for name, indices in cycle.removed.items()},
        "relevance_mean_bits": {name: scores.mean.tolist() for name, scores in cycle.scores.items()},
        "relevance_std_bits": {name: scores.std.tolist() for name, scores in cycle.scores.items()},
        "mini_batches": {name: len(scores.per_batch) for name, scores in cycle.scores.items()},
    }
