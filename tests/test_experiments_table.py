"""The table of docs/experiments.md: what it says of runs, and that it is up to date."""
# SPDX-License-Identifier: MIT

import json
import re

import experiments_table
import pytest


def run(seed: int, before: float, after: float, **recipe) -> dict:
    costs = {"macs": 1000, "conv_macs": 800, "parameters": 500}
    return {
        "recipe": {
            "model": "lenet5",
            "data": "mnist",
            "limits": {"conv1": 2, "conv2": 3},
            "source": str(seed),
            **recipe,
        },
        "seed": seed,
        "device": "cpu",
        "before": {**costs, "test_accuracy": before, "validation_accuracy": before},
        "after": {"macs": 164, "conv_macs": 16, "parameters": 200, "test_accuracy": after},
        "cycles": [{"validation_accuracy": after, "macs": 164, "parameters": 200}],
        "seconds": {"total": 60.0 * (1 + seed)},
    }


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs/plots").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    begin, end = experiments_table.BEGIN, experiments_table.END
    (tmp_path / "docs/experiments.md").write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    (tmp_path / "results/other.json").write_text(json.dumps({"cells": []}))
    return tmp_path


def test_runs_are_collected_and_shown_with_their_mean_and_spread(root):
    for seed, after in ((2, 0.984), (0, 0.986), (1, 0.985)):
        (root / f"run{seed}").mkdir()
        (root / f"run{seed}/report.json").write_text(json.dumps(run(seed, 0.99, after)))
    content = experiments_table.collect([root / f"run{seed}" for seed in (2, 0, 1)])
    assert [report["seed"] for report in content["runs"]] == [0, 1, 2]
    (root / "results/lenet5-mnist-2-3.json").write_text(json.dumps(content))
    lines = experiments_table.render(root).splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    (row,) = (line for line in lines if "lenet5-mnist-2-3.json" in line)
    assert row == (
        "| [`lenet5-mnist`](../results/lenet5-mnist-2-3.json) | 2 3 | 3 | -83.60 %, -60.00 % | -98.00 % "
        "| 99.00, 98.50 % | 0.50 (0.40 to 0.60) | 2.0, cpu | FLOPs -97.98 %, accuracy -0.52 points |"
    )
    (missing,) = (line for line in lines if line.startswith("Not measured yet: "))
    assert "`lenet5-mnist`" not in missing and "`vgg16-cifar10`" in missing


def test_recipes_are_kept_apart_and_a_seed_counts_once(root):
    runs = [run(0, 0.99, 0.98), run(0, 0.99, 0.97, criterion="l1"), run(1, 0.99, 0.98, limits={"conv1": 4})]
    (root / "results/all.json").write_text(json.dumps({"runs": runs}))
    rows = [line for line in experiments_table.render(root).splitlines() if "all.json" in line]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| [`lenet5-mnist`](../results/all.json)", "2 3", "1"],
        ["| [`lenet5-mnist`](../results/all.json), l1", "2 3", "1"],
        ["| [`lenet5-mnist`](../results/all.json)", "4", "1"],
    ]
    (root / "results/all.json").write_text(json.dumps({"runs": [run(0, 0.99, 0.98), run(0, 0.99, 0.97)]}))
    message = "runs of one recipe must have different seeds, got [0, 0]"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        experiments_table.render(root)


def test_the_comparison_of_criteria_is_drawn_run_by_run(root):
    runs = [run(seed, 0.99, 0.98 - seed / 100, criterion=name) for name in ("hrel", "l1") for seed in (0, 1)]
    (root / experiments_table.CRITERIA).write_text(json.dumps({"runs": runs}))
    experiments_table.draw(root)
    drawn = (root / experiments_table.PLOT).read_text()
    assert "hrel, 2 runs" in drawn and "l1, 2 runs" in drawn and "MACs, 16.4 % in the end" in drawn
    assert "plots/criteria_by_cycle.svg" in experiments_table.render(root)


def test_the_page_is_what_the_results_say(monkeypatch):
    monkeypatch.setattr("sys.argv", ["experiments_table.py", "--check"])
    experiments_table.main()
