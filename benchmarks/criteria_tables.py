"""The comparison of criteria in docs/results.md, from the JSON of criteria_study.py."""
# SPDX-License-Identifier: MIT

from collections import defaultdict
from statistics import mean, median
from typing import Any

from cpu_tables import table

Json = dict[str, Any]
STUDIES = ("results/criteria-lenet5.json", "results/criteria-resnet20.json")
PLOT = "criteria"  # docs/plots/criteria.svg, by plots.py
AFTER, BEFORE = "test_accuracy", "validation_accuracy_before_retraining"
RANDOM = "random"


def drops(study: Json, budget: str, criterion: str, accuracy: str = AFTER) -> dict[int, list[float]]:
    """What the networks of a criterion lost against the base network of their seed, in points, by seed; all draws."""
    split = "test_accuracy" if accuracy == AFTER else "validation_accuracy"
    bases = {base["seed"]: base[split] for base in study["bases"]}
    found: dict[int, list[float]] = defaultdict(list)
    for cell in study["cells"]:
        if (cell["budget"], cell["criterion"]) == (budget, criterion):
            found[cell["seed"]].append(100 * (bases[cell["seed"]] - cell[accuracy]))
    return dict(found)


def section(studies: dict[str, Json], plots: str) -> list[str]:
    """The section, from the studies by the link to their JSON."""
    lines = [
        "Each criterion prunes copies of the same trained networks in one shot, to the same number of filters or of "
        "MACs, and all copies are retrained in the same way (`benchmarks/criteria_study.py`). After the comma stands "
        "the tensor that is scored. Numbers are points of accuracy lost against the unpruned network of the same seed: "
        "the mean, and in brackets the smallest and the largest, over the seeds (for `random` over seeds and draws, so "
        "that its range is the wider one). After retraining it is the accuracy on the test split, which is read once "
        "for each network; before retraining it is that on the validation split. Of three seeds, a criterion no better "
        "than random filters is better in all of them about one time in eight; ranges that meet show no difference. "
        "`hrel_set` was measured before it put copies of filters last; filters of which none is a copy come as before.",
    ]
    for link, study in studies.items():
        settings, bases = study["settings"], [100 * base["test_accuracy"] for base in study["bases"]]
        seconds = sum(base["seconds"] for base in study["bases"])
        seconds += sum(sum(cell["seconds"].values()) for cell in study["cells"])
        environment, budgets = study["environment"], list(settings["budgets"])
        of_limits = all("limits" in arguments for arguments in settings["budgets"].values())
        left = (
            "filters left of conv1 and conv2"
            if of_limits
            else "at most this share of the MACs left, inner convolutions only"
        )
        lines += [
            "",
            f"### {settings['model']}, {settings['data']}",
            f"`{study['command']}`, seeds {', '.join(map(str, settings['seeds']))}, {seconds / 60:.0f} minutes on "
            f"{environment['threads']} thread of {environment['processor']}, torch {environment['torch']} ({link}). "
            f"{settings['train']} images to train on, {settings['validation']} to choose the epoch by, "
            f"{settings['test']} of the test split; {settings['base']['epochs']} epochs, then "
            f"{settings['retraining']['epochs']} after pruning; filters scored on "
            f"{settings['score_batches']} mini-batches of {settings['batch_size']}. So few images and epochs leave the "
            f"unpruned networks at {mean(bases):.2f} % ({min(bases):.2f} to {max(bases):.2f}), below what is published "
            f"for the whole data set. Columns: {left}.",
            "",
        ]
        if len(study["cells"]) < study["planned_cells"]:
            done = f"{len(study['cells'])} of {study['planned_cells']} networks"
            lines += [f"**Unfinished: {done}.** Rows of fewer seeds say of how many.", ""]
        rows = [
            [f"`{row.split(',')[0]}`{row[len(row.split(',')[0]) :]}"]
            + [_cell(study, budget, row, accuracy) for accuracy in (AFTER, BEFORE) for budget in budgets]
            for row in settings["criteria"]
        ]
        lines += table(["criterion", *budgets, *(f"before retraining: {budget}" for budget in budgets)], rows)
        lines += ["", *(f"- {budget}: {verdict(study, budget)}" for budget in budgets)]
    return [*lines, "", f"![What each criterion costs in accuracy, seed by seed]({plots}{PLOT}.svg)"]


def _cell(study: Json, budget: str, row: str, accuracy: str) -> str:
    found = drops(study, budget, row, accuracy)
    values = [value for draws in found.values() for value in draws]
    if not values:
        return ""
    seeds = len(study["settings"]["seeds"])
    fewer = f", {len(found)} of {seeds} seeds" if len(found) < seeds else ""
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f}{fewer})"


def verdict(study: Json, budget: str) -> str:
    """What the rows of one column allow to say, and no more; only of the criteria that are finished."""
    seeds, num_draws = study["settings"]["seeds"], study["settings"]["draws"]
    all_drops = {row: drops(study, budget, row) for row in study["settings"]["criteria"]}
    found = {
        row: [mean(by_seed[seed]) for seed in seeds]
        for row, by_seed in all_drops.items()
        if len(by_seed) == len(seeds) and (row != RANDOM or all(len(d) == num_draws for d in by_seed.values()))
    }
    chance = found.pop(RANDOM, None)
    if len(found) < 2 or chance is None:
        return "not finished."
    means = {row: mean(values) for row, values in found.items()}
    best, worst = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    apart = median(max(values) - min(values) for values in found.values())
    better = [row for row, values in found.items() if all(v < c for v, c in zip(values, chance, strict=True))]
    worse = [row for row, values in found.items() if all(v > c for v, c in zip(values, chance, strict=True))]
    overlap = [row for row, values in found.items() if row != best and min(values) <= max(found[best])]
    return (
        f"the criteria lie between {means[best]:.2f} ({best}) and {means[worst]:.2f} points ({worst}), random filters "
        f"at {mean(chance):.2f}; the seeds of one criterion lie {apart:.2f} points apart (median). Better than random "
        f"in every seed: {_names(better)}; worse in every seed: {_names(worse)}. The ranges of {len(overlap)} of the "
        f"{len(found) - 1} others meet that of the best."
    )


def _names(rows: list[str]) -> str:
    return "; ".join(rows) or "none"
