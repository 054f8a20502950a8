"""Which criterion should choose the filters? python benchmarks/criteria_study.py lenet5 (or resnet20)

For each of three seeds a network is trained on a part of MNIST or CIFAR-10; then each criterion prunes a copy of it in
one shot to each budget, and the copy is retrained. Data, base network, mini-batches that filters are scored on and
batch norms are estimated on, epochs, learning rates and the order of the samples are the same for all criteria of a
seed. The validation split chooses the epoch, of the base network too; the test split is read once for each network, and
nothing was chosen by it. Random numbers are drawn three times per seed.

Writes results/criteria-lenet5.json or -resnet20.json after every network; a run that was stopped goes on where it was
when it is started again. One thread, so that both studies can run side by side on two cores. HREL_DATA_DIR or
--data-dir names the folder of the images; --quick tries it on scikit-learn's digits.
"""
# SPDX-License-Identifier: MIT

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrel_ext.experiment import environment
from hrel_ext.pruning import CRITERIA, Training, count, evaluate, prune, train
from hrel_ext.pruning.checkpoint import write_json
from hrel_ext.recipes import Stage
from hrel_ext.zoo.data import DATASETS, Batches, Split, Splits
from hrel_ext.zoo.models import MODELS

ROOT = Path(__file__).parents[1]
EVALUATION_BATCH = 500  # samples; only memory and speed depend on it
IN_ONE_CYCLE = 0.99  # share of the filters that a cycle may take, so that one takes all that go

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that decides the result of a comparison.

    Attributes:
        model, data: names in `MODELS` and `DATASETS`.
        train, validation, test: images used of each split; of the test split the same ones for all seeds.
        base, retraining: of the unpruned network, and of every pruned one.
        criteria: what a row is called to the name in `CRITERIA` and its options.
        draws: of each random criterion for a seed.
        budgets: what a column is called to the arguments of `prune`.
        score_batches: mini-batches of ``batch_size`` training images to score on.
        channels_last: the memory format; ResNet-20 trains an eighth faster with it on the CPU.
    """

    model: str
    data: str
    train: int
    validation: int
    test: int
    base: Stage
    retraining: Stage
    criteria: Mapping[str, tuple[str, Mapping[str, Any]]]
    budgets: Mapping[str, Mapping[str, Any]]
    channels_last: bool
    seeds: tuple[int, ...] = (0, 1, 2)
    draws: int = 3
    batch_size: int = 100
    score_batches: int = 5
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def cells(self) -> Iterator[tuple[int, str, str, int]]:
        """Seed, budget, criterion and draw of each network to make, one budget after the other."""
        for budget in self.budgets:
            for seed in self.seeds:
                for row, (name, _) in self.criteria.items():
                    for draw in range(self.draws if name == "random" else 1):
                        yield seed, budget, row, draw


def _limits(conv1: int, conv2: int) -> Json:
    share = {"conv1": IN_ONE_CYCLE, "conv2": IN_ONE_CYCLE}
    return {"limits": {"conv1": conv1, "conv2": conv2}, "shares": share}


HREL = {"sigma": "layer", "alpha": 1.01, "label_sigma": 0.1}
OPTIONS = {"hrel": HREL, "hrel_debiased": dict(HREL, permutations=20), "hrel_set": HREL}


def _on(where: str, *names: str) -> dict[str, tuple[str, Json]]:
    """Rows for criteria that score the tensor ``where``."""
    return {f"{name}, {where}": (name, dict(OPTIONS.get(name, {}), where=where)) for name in names}


WITHOUT_DATA = {name: (name, {}) for name in ("l1", "l2", "random")}
STUDIES = {
    "lenet5": Study(
        model="lenet5",
        data="mnist",
        train=10000,
        validation=2000,
        test=10000,
        base=Stage(epochs=10, learning_rate=0.05),
        retraining=Stage(epochs=4, learning_rate=0.05),
        criteria={
            **_on("conv", "hrel"),  # HRel's own choice for LeNet-5
            **_on("pool", "hrel"),
            **_on("conv", "hrel_debiased", "hrel_set", "alignment", "variance"),
            **_on("pool", "variance"),
            **_on("relu", "hrank", "taylor"),
            **WITHOUT_DATA,
        },
        budgets={f"{conv1}, {conv2}": _limits(conv1, conv2) for conv1, conv2 in ((8, 15), (4, 5), (2, 3))},
        channels_last=False,
    ),
    "resnet20": Study(
        model="resnet20",
        data="cifar10",
        train=2500,
        validation=500,
        test=3000,
        base=Stage(epochs=12, learning_rate=0.1),
        retraining=Stage(epochs=2, learning_rate=0.05),
        criteria={
            **_on("relu", "hrel", "hrel_debiased", "hrel_set", "alignment", "variance", "hrank", "taylor"),
            "bn_scale": ("bn_scale", {}),
            **WITHOUT_DATA,
        },
        budgets={f"{100 * share:.0f} % of the MACs": {"target": {"macs": share}} for share in (0.25, 0.5)},
        channels_last=True,
    ),
}


def quick(study: Study) -> Study:
    """The same on few digits, with one seed and one budget, to try it."""
    budgets = dict([*study.budgets.items()][-1:])
    small = {"train": 60, "validation": 40, "test": 40, "batch_size": 20, "score_batches": 2}
    once = Stage(epochs=1, learning_rate=0.02)
    return replace(study, data="digits", seeds=(0,), draws=1, base=once, retraining=once, budgets=budgets, **small)


def load(study: Study, data_dir: str | None, seed: int) -> Splits:
    """The images of one seed: which of them train and validate changes with it, those of the test split stay."""
    splits = DATASETS[study.data](data_dir, seed)
    order = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(0))  # the files may go by class
    layout = torch.channels_last if study.channels_last else torch.contiguous_format

    def part(split: Split, rows: Tensor) -> Split:  # a copy, so that the rest need not stay in memory
        images = split.images[rows]
        if study.model == "resnet20" and images.shape[1] == 1:  # the digits, to try it
            images = images.repeat(1, 3, 1, 1)
        return Split(images.contiguous(memory_format=layout), split.labels[rows])

    return Splits(
        part(splits.train, torch.arange(study.train)),
        part(splits.validation, torch.arange(study.validation)),
        part(splits.test, order[: study.test]),
    )


class Bench:
    """One seed of a study: its data, its base network, and criteria that keep their scores of it."""

    def __init__(self, study: Study, data_dir: str | None, seed: int) -> None:
        self.study, self.seed = study, seed
        self.splits = load(study, data_dir, seed)
        self.validation = Batches(self.splits.validation, EVALUATION_BATCH)
        rows = slice(study.batch_size * study.score_batches)
        scored = Split(self.splits.train.images[rows], self.splits.train.labels[rows])
        self.score_batches = Batches(scored, study.batch_size)
        torch.manual_seed(seed)
        self.model = MODELS[study.model]()
        if study.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.criteria: dict[tuple[str, int], Any] = {}

    def train(self, model: nn.Module, stage: Stage, order: int) -> Training:
        """Train in place; ``order`` tells apart the orders of the samples of one seed."""
        study = self.study
        return train(
            model,
            Batches(self.splits.train, study.batch_size, seed=1000 * self.seed + order, drop_last=True),
            self.validation,
            epochs=stage.epochs,
            learning_rate=stage.learning_rate,
            milestones=stage.milestones,
            momentum=study.momentum,
            weight_decay=study.weight_decay,
            seed=self.seed,
        )

    def test(self, model: nn.Module) -> float:
        return evaluate(model, Batches(self.splits.test, EVALUATION_BATCH)).accuracy

    def criterion(self, row: str, draw: int) -> Any:
        """The criterion of a row; the same one for all budgets, so that it scores the base network once."""
        if (row, draw) not in self.criteria:
            name, options = self.study.criteria[row]
            if name == "random":
                options = dict(options, seed=self.study.draws * self.seed + draw)
            self.criteria[row, draw] = CRITERIA[name](self.score_batches, **options)
        return self.criteria[row, draw]

    def cell(self, budget: str, row: str, draw: int) -> Json:
        """Prune a copy of the base network, retrain it and measure it; accuracies in [0, 1]."""
        model, example = deepcopy(self.model), self.splits.train.images[:1]
        start = time.perf_counter()
        arguments = self.study.budgets[budget]
        result = prune(model, self.score_batches, example, criterion=self.criterion(row, draw), **arguments)
        assert len(result.cycles) == 1, "all that goes must go at once"
        pruned = time.perf_counter()
        before = evaluate(model, self.validation).accuracy
        training = self.train(model, self.study.retraining, 1)
        return {
            "seed": self.seed,
            "budget": budget,
            "criterion": row,
            "draw": draw,
            **asdict(count(model, example)),
            "validation_accuracy_before_retraining": before,
            "validation_accuracy": training.best.validation.accuracy,
            "chosen_epoch": training.best.number,
            "test_accuracy": self.test(model),
            "seconds": {"score and prune": pruned - start, "retrain": time.perf_counter() - pruned},
        }


def run(study: Study, data_dir: str | None, output: Path, command: str) -> Json:
    """Make all cells of a study that ``output`` does not hold yet, and write it after each.

    Raises:
        ValueError: ``output`` holds cells of other settings, or a base network that does not come out as before.
    """
    settings = json.loads(json.dumps(asdict(study)))
    planned = list(study.cells())
    report: Json = {
        "command": command,
        "settings": settings,
        "environment": environment(),
        "planned_cells": len(planned),
        "bases": [],
        "cells": [],
    }
    if output.exists():
        report = json.loads(output.read_text())
        if report["settings"] != settings:
            raise ValueError(f"{output} must hold cells of the same settings, got others: move it away")
    done = {(cell["seed"], cell["budget"], cell["criterion"], cell["draw"]) for cell in report["cells"]}
    benches: dict[int, Bench] = {}
    first, start = len(done), time.perf_counter()
    for seed, budget, row, draw in planned:
        if (seed, budget, row, draw) in done:
            continue
        if seed not in benches:
            benches[seed] = Bench(study, data_dir, seed)
            _train_base(benches[seed], report)
            write_json(output, report)
        cell = benches[seed].cell(budget, row, draw)
        report["cells"].append(cell)
        write_json(output, report)
        number = len(report["cells"])
        rest = (len(planned) - number) * (time.perf_counter() - start) / (number - first)
        print(  # nothing of the test split: who watches a run must not choose by it
            f"{number}/{len(planned)}  seed {seed}  {budget:<16}  {row:<20}  validation "
            f"{100 * cell['validation_accuracy_before_retraining']:6.2f} % to "
            f"{100 * cell['validation_accuracy']:.2f} %  {rest / 60:.0f} min left",
            flush=True,
        )
    return report


def _train_base(bench: Bench, report: Json) -> None:
    """Train the base network of a seed; a run that goes on trains it again, and it must come out the same."""
    start = time.perf_counter()
    training = bench.train(bench.model, bench.study.base, 0)
    known = next((base for base in report["bases"] if base["seed"] == bench.seed), None)
    if known is None:
        report["bases"].append(
            {
                "seed": bench.seed,
                **asdict(count(bench.model, bench.splits.train.images[:1])),
                "validation_accuracy": training.best.validation.accuracy,
                "chosen_epoch": training.best.number,
                "test_accuracy": bench.test(bench.model),
                "seconds": time.perf_counter() - start,
            }
        )
    elif known["validation_accuracy"] != training.best.validation.accuracy:
        raise ValueError(
            f"the base network of seed {bench.seed} must come out as before, with a validation accuracy of "
            f"{known['validation_accuracy']}, got {training.best.validation.accuracy}: another machine or version?"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=STUDIES)
    parser.add_argument("--data-dir", help="folder of the images; default: HREL_DATA_DIR")
    parser.add_argument("--output", type=Path, help="default: results/criteria-NETWORK.json")
    parser.add_argument("--quick", action="store_true", help="few digits, one seed, one budget, to try it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = quick(STUDIES[args.network]) if args.quick else STUDIES[args.network]
    command = f"python benchmarks/criteria_study.py {args.network}" + (" --quick" if args.quick else "")
    run(study, args.data_dir, args.output or ROOT / f"results/criteria-{args.network}.json", command)


if __name__ == "__main__":
    main()
