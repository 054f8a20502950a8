"""Runs a recipe: train, prune in cycles, train again; measures both networks and writes everything down."""
# SPDX-License-Identifier: MIT

import copy
import inspect
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from hrel_ext import _ranks
from hrel_ext._ops import build_info
from hrel_ext.collect import Batch
from hrel_ext.pruning import (
    CRITERIA,
    Criterion,
    Cycle,
    Epoch,
    Training,
    check_device,
    check_schedule,
    check_training,
    count,
    evaluate,
    measure_latency,
    plan,
    prune,
    save_pruned,
    train,
)
from hrel_ext.pruning.checkpoint import write_json
from hrel_ext.pruning.cycles import write_scores
from hrel_ext.pruning.resume import Checkpoints
from hrel_ext.recipes import Recipe, Stage
from hrel_ext.recording import PLANE, Clock, RecordedBatches, Recorder, WatchedCriterion
from hrel_ext.scores import LayerScores
from hrel_ext.zoo.data import BLACK, Batches, CropAndFlip, Split, Splits
from hrel_ext.zoo.models import MODELS, load_weights, make_model

CHECKPOINTS = "checkpoints"  # folder in the output of an unfinished run
SCORES = "scores.safetensors"
EVALUATION_BATCH = 500  # samples; only memory and speed depend on it
LATENCY_BATCH = 100  # samples
FIXED_WIDTH_BATCHES = 10  # mini-batches of the curve at a fixed width; a mean over thousands of samples is smooth
TRIED = 8  # samples that are scored before any training, to see that the recipe can be run
TRAINING = ("momentum", "nesterov", "weight_decay", "label_smoothing", "precision", "accumulate")
RULES = ("target", "limits", "residual", "round_to", "min_channels", "max_ratio")


@dataclass
class Observer:
    """What a run tells while it goes on; every default is silent."""

    on_stage: Callable[[str, int], None] = lambda name, epochs: None  # name of the stage, epochs it will take
    on_epoch: Callable[[Epoch], None] = lambda epoch: None
    on_cycle: Callable[[Cycle], None] = lambda cycle: None
    progress: Callable[[Iterable[Batch]], Iterable[Batch]] = lambda batches: batches


def run(
    recipe: Recipe,
    splits: Splits,
    *,
    seed: int,
    device: str,
    output: Path,
    command: str,
    observer: Observer | None = None,
    download: bool = False,
) -> dict[str, object]:
    """Run a recipe and write model.safetensors, model.pt, plan.json, scores.safetensors and report.json to ``output``,
    and plane.safetensors if the recipe records the information plane.

    Every epoch that is kept, of the whole and of the pruned network, is chosen on the validation split. The test split
    is read twice: once for the whole network, once for the pruned one. A run that was interrupted, at whatever moment,
    goes on from the folder ``checkpoints`` of its output when it is called again with the same arguments; on the CPU it
    ends with the same network. Processes that torchrun started work as one, see docs/scaling.md; rank 0 writes.

    Args:
        recipe: what to train, prune and retrain.
        splits: its data.
        seed: of the weights, of the order of the samples and of the training.
        device: "cpu" or "cuda".
        output: folder, made if it is not there.
        command: how to repeat the run; goes into the report.
        observer: told of stages, epochs and cycles.
        download: whether weights that the recipe starts from may be downloaded.

    Returns:
        The content of report.json; times in seconds and ms, accuracies in [0, 1], relevances in bits.

    Raises:
        ValueError: a recipe that does not fit its network, data or device, before any training; an output with an
            unfinished run of other settings; HREL_RANK_TIMEOUT_S that is no number of seconds.
        OSError: the output cannot be written; what was written before is still there. Weights that are not there.
        ConnectionError: another process was killed, or did not answer in time.
    """
    check_device(device)
    with _ranks.joined(device):
        first = _ranks.rank() == 0
        observer = observer if observer and first else Observer()
        return _run(recipe, splits, seed, device, output, command, observer, download)


def _run(
    recipe: Recipe,
    splits: Splits,
    seed: int,
    device: str,
    output: Path,
    command: str,
    observer: Observer,
    download: bool,
) -> dict[str, object]:
    """`run`, on each rank."""
    torch.manual_seed(seed)
    memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = _network(recipe, splits, download).to(device, memory_format=memory_format)
    splits = splits.to(device)
    example = splits.train.images[:1]
    states = output / CHECKPOINTS
    begun = Checkpoints(states / "run", {**asdict(recipe), "seed": seed, "samples": _sizes(splits)})
    try:
        going_on = begun.latest()
    except ValueError as error:
        raise ValueError(
            f"output {output} must hold no unfinished run of other settings; give another, or delete {states}: {error}"
        ) from None
    rules = {name: getattr(recipe, name) for name in RULES}
    if not going_on:
        _check(recipe, model, splits, rules, seed)
        begun.save(lambda folder: None)
    clock = Clock(states, bool(going_on))
    validation = Batches(splits.validation, EVALUATION_BATCH)
    first = _ranks.rank() == 0
    recorder = Recorder(recipe, model, seed, output / PLANE if going_on else None)
    augment = _augmentation(recipe)

    def train_stage(name: str, stage: Stage, number: int, teacher: nn.Module | None = None) -> Training | None:
        if first and number > 1:  # what it left behind is in the checkpoint of the cycles by now
            shutil.rmtree(states / f"cycle-{number - 1}", ignore_errors=True)
        observer.on_stage(name, stage.epochs)
        if not stage.epochs:
            return None
        recorder.begin(name)

        taught = {"label_smoothing": 0.0, "distillation": recipe.distillation} if teacher else {}

        def on_epoch(epoch: Epoch) -> None:
            recorder.save(output / PLANE)
            clock.save()
            observer.on_epoch(epoch)

        with clock.time("retrain" if name.startswith("cycle") else name):
            batches = Batches(splits.train, recipe.batch_size, seed=seed + number, drop_last=True, augment=augment)
            return train(
                model,
                RecordedBatches(batches, recorder, name),
                validation,
                **_settings(recipe, stage) | taught,
                teacher=teacher,
                seed=seed,
                device=device,
                checkpoint=states / name.replace(" ", "-"),
                on_step=recorder.record,
                on_epoch=on_epoch,
            )

    with clock.time("total"):
        trained = train_stage("baseline", recipe.baseline, 0)
        before = _measured_once(states / "before", lambda: _measure(model, splits, trained))
        teacher = copy.deepcopy(model) if recipe.distillation else None
        with clock.time("score and prune, retraining included"):
            batches = _scored(recipe, splits.train, seed)
            criterion = _criterion(recipe, batches, seed, observer.progress)
            watched = None
            if recipe.criterion == "hrel" and recipe.sigma == "layer":
                few = _few(recipe, splits.train)
                criterion = watched = WatchedCriterion(criterion, few, recipe.alpha, recipe.where, states)

            def on_cycle(cycle: Cycle) -> None:
                if watched:
                    watched.number = cycle.number + 1
                clock.save()
                observer.on_cycle(cycle)

            result = prune(
                model,
                batches,
                example,
                **rules,
                shares=recipe.shares,
                cycles=recipe.cycles,
                retrain=lambda _, number: train_stage(f"cycle {number}", recipe.cycle, number, teacher),
                evaluate=lambda pruned: evaluate(pruned, validation).accuracy,
                max_drop=recipe.max_drop,
                scored=recipe.scored,
                criterion=criterion,
                checkpoint=states / "cycles",
                on_cycle=on_cycle,
            )
        retrained = train_stage("final", recipe.final, len(result.cycles) + 1, teacher)
        after = _measure(model, splits, retrained)

    report = {
        "command": command,
        "ranks": _ranks.num_ranks(),
        "recipe": asdict(recipe),
        "seed": seed,
        "device": device,
        "environment": environment(),
        "samples": _sizes(splits),
        "filters": {"before": dict(result.original), "after": result.cycles[-1].filters},
        "layers": [{**asdict(layer), "got": layer.got} for layer in result.plan.layers],
        "before": before,
        "after": after,
        "test_accuracy_drop_points": 100 * (before["test_accuracy"] - after["test_accuracy"]),
        "cycles": [_cycle_row(cycle, watched) for cycle in result.cycles],
        "stopped": result.stopped,
        "seconds": clock.seconds,
        "resumed": clock.parts - 1,
    }

    def write() -> dict[str, object]:
        save_pruned(
            output,
            model,
            result,
            input_shape=tuple(example.shape[1:]),
            model_name=recipe.model if recipe.model in MODELS else None,
            num_classes=splits.num_classes,
            recipe=report["recipe"],
            environment=report["environment"],
            seed=seed,
            test_accuracy=after["test_accuracy"],
            validation_accuracy=after["validation_accuracy"],
        )
        write_scores(output / SCORES, result.cycles, watched.maps if watched else {})
        write_json(output / "report.json", report)
        finished = output / f".{CHECKPOINTS}"
        shutil.rmtree(finished, ignore_errors=True)  # of an earlier run that was killed at the next but one line
        states.rename(finished)  # in one step: half a set of states must not be found
        shutil.rmtree(finished)
        return report

    return _ranks.from_first(write)


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


def _network(recipe: Recipe, splits: Splits, download: bool) -> nn.Module:
    """The network of a recipe, one of ours with as many outputs as the data has classes, and its first weights."""
    options = {"num_classes": splits.num_classes} if recipe.model in MODELS else {}
    network = make_model(recipe.model, **options)
    if recipe.weights is not None:
        load_weights(network, recipe.weights, recipe.model, download=download)
    return network


def _sizes(splits: Splits) -> dict[str, int]:
    return {name: len(getattr(splits, name)) for name in ("train", "validation", "test")}


def _scored(recipe: Recipe, train: Split, seed: int) -> Batches:
    """The mini-batches that filters are scored on: all of the training split, or some drawn by the seed."""
    if recipe.scored_batches is not None:
        full = len(train) // recipe.batch_size
        if not 1 <= recipe.scored_batches <= full:
            raise ValueError(
                f"scored_batches must be between 1 and the {full} mini-batches of the training split, "
                f"got {recipe.scored_batches}"
            )
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        rows = order[: recipe.scored_batches * recipe.batch_size].to(train.labels.device)
        train = train.take(rows)
    return Batches(train, recipe.batch_size, seed=seed, drop_last=True)


def _few(recipe: Recipe, train: Split) -> Batches:
    """The first mini-batches of the training split, in its order."""
    samples = min(FIXED_WIDTH_BATCHES, len(train) // recipe.batch_size) * recipe.batch_size
    return Batches(train.take(torch.arange(samples, device=train.labels.device)), recipe.batch_size)


def _settings(recipe: Recipe, stage: Stage) -> dict[str, object]:
    """The arguments of `train` that a recipe decides, but for the teacher."""
    return {**asdict(stage), **{name: getattr(recipe, name) for name in TRAINING}}


def _criterion(
    recipe: Recipe, batches: Iterable[Batch], seed: int, progress: Callable[[Iterable[Batch]], Iterable[Batch]]
) -> Criterion:
    """The criterion of a recipe, with those of its settings that this one has."""
    if recipe.criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {recipe.criterion!r}")
    criterion = CRITERIA[recipe.criterion]
    settings = {
        "sigma": None if recipe.sigma == "layer" else recipe.sigma,
        "alpha": recipe.alpha,
        "where": recipe.where,
        "seed": seed,
        "progress": progress,
    }
    parameters = inspect.signature(criterion).parameters
    return criterion(batches, **{name: value for name, value in settings.items() if name in parameters})


def _check(recipe: Recipe, model: nn.Module, splits: Splits, rules: dict[str, object], seed: int) -> None:
    """Plan, and score a few samples with a copy of the untrained network, so that a mistake costs no training."""
    for stage in (recipe.baseline, recipe.cycle, recipe.final):
        if stage.epochs:
            check_training(**_settings(recipe, stage), distillation=recipe.distillation)
    example = splits.train.images[:1]
    if recipe.limits is not None:
        check_schedule(model, recipe.limits, recipe.shares or {}, recipe.scored)
    made = plan(model, example, **rules)
    few = splits.train.take(torch.arange(min(TRIED, len(splits.train))))
    names = [name for group in made.groups for name in made.scored(group)]
    criterion = _criterion(recipe, Batches(few, len(few)), seed, lambda batches: batches)
    criterion.table(copy.deepcopy(model), {name: (recipe.scored or {}).get(name, name) for name in names})
    _scored(recipe, splits.train, seed)


def _augmentation(recipe: Recipe) -> CropAndFlip | None:
    if not (recipe.margin or recipe.mirror):
        return None
    return CropAndFlip(recipe.margin, BLACK[recipe.data], recipe.mirror)


def _measured_once(states: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What was measured before the interruption, if it was."""
    store = Checkpoints(states, {})
    if folder := store.latest():
        return json.loads((folder / "measured.json").read_text())
    measured = measure()
    store.save(lambda folder: write_json(folder / "measured.json", measured))
    return measured


def _measure(model: nn.Module, splits: Splits, training: Training | None) -> dict[str, float]:
    """Costs, latency and accuracies of a trained network; reads the test split once."""
    latency = _ranks.from_first(lambda: measure_latency(model, splits.test.images[:LATENCY_BATCH]))
    validation = training.best.validation if training else evaluate(model, Batches(splits.validation, EVALUATION_BATCH))
    return {
        **asdict(count(model, splits.test.images[:1])),
        "latency_ms": latency.median_ms,
        "latency_batch_size": latency.batch_size,
        "latency_threads": latency.threads,
        "chosen_epoch": training.best.number if training else 0,
        "validation_accuracy": validation.accuracy,
        "test_accuracy": evaluate(model, Batches(splits.test, EVALUATION_BATCH)).accuracy,
    }


def _cycle_row(cycle: Cycle, watched: WatchedCriterion | None) -> dict[str, object]:
    row = {
        "cycle": cycle.number,
        "filters": cycle.filters,
        "validation_accuracy": cycle.accuracy,
        **asdict(cycle.cost),
        "removed": {name: list(indices) for name, indices in cycle.removed.items()},
        "score_mean": {name: scores.mean.tolist() for name, scores in cycle.scores.items()},
        "score_std": {name: scores.std.tolist() for name, scores in cycle.scores.items()},
        "mini_batches": {name: len(scores.per_batch) for name, scores in cycle.scores.items()},
        # Means over the mini-batches: one number a layer, or one a filter where each has its own width.
        "widths": {
            name: scores.widths.mean(dim=0).tolist()
            for name, scores in cycle.scores.items()
            if isinstance(scores, LayerScores)
        },
    }
    return row | {"relevance_at_first_width": watched.of_cycle(cycle.number)} if watched else row
