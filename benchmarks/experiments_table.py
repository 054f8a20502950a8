"""The table of docs/experiments.md and its plot, from the reports of runs in results/.

    python benchmarks/experiments_table.py --collect results/NAME.json RUN_DIR RUN_DIR RUN_DIR     report.json of each
    python benchmarks/experiments_table.py                                                         writes the page
    python benchmarks/experiments_table.py --check                                                 fails if it is old

A file holds {"runs": [report.json of a run, ...]}, say of three seeds; or it is the report.json of one run.
"""
# SPDX-License-Identifier: MIT

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, median
from typing import Any

from cpu_tables import table

from hrel_ext.recipes import EXPERIMENTS

ROOT = Path(__file__).parents[1]
PAGE, CRITERIA = "docs/experiments.md", "results/lenet5-digits-criteria.json"
PLOT = "docs/plots/criteria_by_cycle.svg"
BEGIN, END = "<!-- runs: written by benchmarks/experiments_table.py -->", "<!-- /runs -->"
PAPER = {  # its abstract; the experiment and the filters left
    ("lenet5-mnist", (2, 3)): "FLOPs -97.98 %, accuracy -0.52 points",
    ("vgg16-cifar10", None): "FLOPs -84.85 %, parameters -94.98 %, top-1 -0.36 points",
    ("resnet56-cifar10-stream", None): "FLOPs -76.89 %",
    ("resnet110-cifar10-stream", None): "FLOPs -76.95 %",
    ("resnet50-imagefolder", None): "FLOPs -63.99 or -66.42 %, top-5 -1.17 points",
}

Json = dict[str, Any]


def collect(run_dirs: list[Path]) -> Json:
    """The reports of runs of the same criteria and limits with different seeds, in the order of their seeds."""
    runs = [json.loads((run_dir / "report.json").read_text()) for run_dir in run_dirs]
    _grouped(runs)
    return {"runs": sorted(runs, key=lambda run: run["seed"])}


def read_all(root: Path) -> dict[str, list[Json]]:
    """File to its runs, of all files in results/ that hold reports of runs."""
    found = {}
    for path in sorted((root / "results").glob("*.json")):
        content = json.loads(path.read_text())
        runs = content.get("runs", [content])
        if all("recipe" in run and "cycles" in run for run in runs):
            found[path.relative_to(root).as_posix()] = runs
    return found


def render(root: Path) -> str:
    """The page with the table that follows from results/."""
    files = read_all(root)
    head, rest = (root / PAGE).read_text().split(BEGIN)
    rows, missing = [], dict.fromkeys(EXPERIMENTS)
    for file, runs in files.items():
        for group in _grouped(runs).values():
            rows.append(_row(file, group))
            missing.pop(_name(group[0]["recipe"]), None)
    columns = ["experiment", "filters left", "runs", "whole network: MACs, parameters", "convolutions' MACs"]
    columns += ["test accuracy, unpruned and pruned", "drop in points", "minutes", "abstract"]
    lines = [
        BEGIN,
        "Means over the runs, in brackets the smallest and the largest. The epoch of both networks is chosen on the "
        "validation split; the test split is read once for each.",
        "",
        *table(columns, rows),
        "",
        f"Not measured yet: {', '.join(f'`{name}`' for name in missing) or 'none'}.",
    ]
    if CRITERIA in files:
        link = Path(PLOT).relative_to("docs").as_posix()
        lines += ["", f"![Accuracy and costs after each cycle, by criterion and seed, on the digits]({link})"]
    return "\n".join([head + BEGIN, *lines[1:], END]) + rest.split(END)[1]


def _name(recipe: Json) -> str:
    """Of the experiment."""
    return f"{recipe['model']}-{recipe['data']}" + ("-stream" if recipe.get("residual") == "stream" else "")


def _grouped(runs: list[Json]) -> dict[str, list[Json]]:
    """The runs of one recipe together; each seed once."""
    groups: dict[str, list[Json]] = defaultdict(list)
    for run in runs:
        groups[json.dumps({**run["recipe"], "source": None}, sort_keys=True)].append(run)
    for group in groups.values():
        seeds = [run["seed"] for run in group]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"runs of one recipe must have different seeds, got {sorted(seeds)}")
    return groups


def _row(file: str, runs: list[Json]) -> list[str]:
    recipe, name = runs[0]["recipe"], _name(runs[0]["recipe"])
    left = tuple(dict.fromkeys(recipe["limits"].values())) if recipe.get("limits") else ()
    target = ", ".join(f"{key} {value}" for key, value in (recipe.get("target") or {}).items())
    criterion = recipe.get("criterion", "hrel")
    title = f"[`{name}`](../{file})" + ("" if criterion == "hrel" else f", {criterion}")
    drops = [100 * (run["before"]["test_accuracy"] - run["after"]["test_accuracy"]) for run in runs]
    tests = [f"{100 * mean(run[side]['test_accuracy'] for run in runs):.2f}" for side in ("before", "after")]
    minutes = median(run["seconds"]["total"] for run in runs) / 60
    return [
        title,
        " ".join(map(str, left)) or target,
        str(len(runs)),
        f"{_gone(runs, 'macs')}, {_gone(runs, 'parameters')}",
        _gone(runs, "conv_macs"),
        f"{tests[0]}, {tests[1]} %",
        f"{mean(drops):.2f}" + (f" ({min(drops):.2f} to {max(drops):.2f})" if len(drops) > 1 else ""),
        f"{minutes:.1f}, {runs[0]['device']}",
        PAPER.get((name, left)) or PAPER.get((name, None), ""),
    ]


def _gone(runs: list[Json], key: str) -> str:
    return f"{-100 * mean(1 - run['after'][key] / run['before'][key] for run in runs):.2f} %"


def draw(root: Path) -> None:
    """The plot of the comparison of criteria, if it was run."""
    runs = read_all(root).get(CRITERIA)
    if runs is None:
        return
    try:
        from hrel_ext.report import plots
    except ImportError as error:  # the page does without
        print(f"{PLOT} was left as it is: {error}; pip install '.[report]'")
        return
    by_criterion: dict[str, list[list[tuple[float, float, float]]]] = defaultdict(list)
    for run in runs:
        points = [
            (row["validation_accuracy"], row["macs"], row["parameters"]) for row in (run["before"], *run["cycles"])
        ]
        by_criterion[run["recipe"]["criterion"]].append(points)
    plots.save(plots.accuracy_by_cycle(by_criterion), root / PLOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, metavar="FILE", help="write this file from the runs that follow")
    parser.add_argument("run_dirs", type=Path, nargs="*", metavar="RUN_DIR")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the page is out of date")
    arguments = parser.parse_args()
    if (arguments.collect is None) == bool(arguments.run_dirs):
        parser.error("--collect FILE must come with at least one RUN_DIR, and each RUN_DIR with it")
    if arguments.collect:
        arguments.collect.write_text(json.dumps(collect(arguments.run_dirs), separators=(",", ":")) + "\n")
        return
    text = render(ROOT)
    if not arguments.check:
        (ROOT / PAGE).write_text(text)
        draw(ROOT)
    elif (ROOT / PAGE).read_text() != text:
        sys.exit(f"{PAGE} is not what results/ render to: run python benchmarks/experiments_table.py")


if __name__ == "__main__":
    main()
