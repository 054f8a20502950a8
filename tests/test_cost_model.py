"""The cost model against its formulas by hand, what hrel plan-cost prints, and memory that a loader does not grow."""
# SPDX-License-Identifier: MIT

import dataclasses
import json
import re
from pathlib import Path

import pytest
import streaming_memory
from typer.testing import CliRunner

from hrel_ext import scores
from hrel_ext.cli import app
from hrel_ext.cost_model import Rates, Workload, cpu_rates, estimate, gpu_rates, score_operations, workload
from hrel_ext.recipes import EXPERIMENTS

RESULTS = Path(__file__).parents[1] / "results"
RATES = Rates(
    "cpu", forward=1e9, train=4e8, score=1e8, decode=50.0, bandwidth=1e8, latency_s=1e-3, measured=(), assumed=()
)


def test_an_estimate_is_its_formula():
    recipe = dataclasses.replace(EXPERIMENTS["lenet5-digits"]["short"], scored_batches=5)
    stages = [recipe.baseline.epochs, recipe.cycle.epochs, recipe.final.epochs]
    work = Workload(recipe, 2, (3_000_000, 1_000_000), (1_000_000, 600_000), (2e7, 1e7), 70, 5)
    for ranks, share in ((1, 0.0), (4, 1.5)):  # 2 (n - 1) / n
        found = estimate(work, RATES, ranks)

        def link(count, share=share, ranks=ranks):
            return share * count / 1e8 + 2 * (ranks - 1) * 1e-3

        table = 4 * 5 * 70
        forward = [100 * macs / 1e9 for macs in (3e6, 2e6)]
        relevance = [operations / 1e8 for operations in (2e7, 1.5e7)]
        turns = {1: 5, 4: 2}[ranks]
        expected = sum(turns * (2 * f + r) + link(table) for f, r in zip(forward, relevance, strict=True))
        assert found.score_s == pytest.approx(expected)

        def epoch(macs, parameters, link=link, ranks=ranks):
            return 11 // ranks * (100 * macs / 4e8 + link(4 * parameters)) + 300 * macs / 1e9 / ranks

        assert found.baseline_s == pytest.approx(stages[0] * epoch(3e6, 1e6))
        retrained = stages[1] * (epoch(2e6, 8e5) + epoch(1e6, 6e5)) + stages[2] * epoch(1e6, 6e5)
        assert found.retrain_s == pytest.approx(retrained)
        assert (found.step_bytes, found.table_bytes) == (4_000_000, table)
        steps = 11 // ranks
        volume = stages[0] * 4e6 + stages[1] * (3.2e6 + 2.4e6) + stages[2] * 2.4e6
        assert found.sent_bytes == pytest.approx(share * (steps * volume + 2 * table))


def test_a_workload_counts_the_network_before_and_after():
    work = workload(EXPERIMENTS["lenet5-digits"]["short"])
    assert work.cycles == 16 and work.filters == 70 and work.scored_batches == 11
    assert work.macs[0] == 2_933_000 and work.parameters[0] == 1_071_880  # as hrel prune lenet5 prints
    assert work.operations[0] == score_operations(100, 24 * 24, 20) + score_operations(100, 8 * 8, 50)
    assert work.operations[1] == score_operations(100, 24 * 24, 4) + score_operations(100, 8 * 8, 5)


@pytest.mark.parametrize("ranks", (0, 12, 65))
def test_more_ranks_than_mini_batches_are_refused(ranks):
    recipe = EXPERIMENTS["lenet5-digits"]["short"]
    work = Workload(recipe, 1, (2, 1), (2, 1), (2.0, 1.0), 2, 1)
    message = f"must be between 1 and 64, and at most the 11 mini-batches of an epoch, got {ranks}"
    with pytest.raises(ValueError, match=re.escape(message)):
        estimate(work, RATES, ranks)


def test_gpus_take_scoring_from_their_file_and_say_what_is_assumed():
    rates = gpu_rates(RESULTS, "resnet50")
    rows = [r for r in json.loads((RESULTS / "gpu/layers.json").read_text())["rows"] if r["network"] == "resnet50"]
    seconds = sum(row["layers_of_this_shape"] * row["public"]["median_ms"] for row in rows) / 1e3
    assert "NVIDIA H100" in rates.measured[0] and "15% of the TF32 rate" in rates.assumed[0]
    assert rates.score == pytest.approx(
        sum(
            row["layers_of_this_shape"] * score_operations(s, h * w, f) for row in rows for s, f, h, w in [row["shape"]]
        )
        / seconds
    )
    inside, between = (rates.all_reduce_s(1e9, ranks) for ranks in (8, 16))
    assert inside == pytest.approx(1.75e9 / 200e9 + 14 * 20e-6) and between == pytest.approx(
        1.875e9 / 25e9 + 30 * 20e-6
    )
    assert "mean rates of the networks that were measured" in cpu_rates(RESULTS, "resnet110").assumed[1]
    with pytest.raises(FileNotFoundError, match=r"throughput\.json must be there: python benchmarks/throughput\.py"):
        cpu_rates(RESULTS / "gpu", "lenet5")


def test_plan_cost_prints_an_estimate_that_fits_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, ["plan-cost", "resnet50-imagenet", "--gpus", "8", "--results", str(RESULTS)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= 80 and "ESTIMATE for resnet50-imagenet, short, 9 cycles" in lines[0]
    assert [line.split("│")[1].strip() for line in lines if line.startswith("│")] == ["1", "2", "4", "8"]
    text = " ".join(line.strip() for line in lines)
    for words in ("measured: scoring of resnet50", "assumed: training and forward passes", "all-reduced: 102MB of"):
        assert words in text
    for arguments, message in (
        ([], "either --gpus or --processes must be given, got none"),
        (["--gpus", "1", "--processes", "1"], "either --gpus or --processes must be given, got both"),
    ):
        done = CliRunner().invoke(app, ["plan-cost", "lenet5-digits", *arguments])
        assert isinstance(done.exception, ValueError) and str(done.exception) == message


def test_the_committed_check_states_how_far_the_model_was_off():
    rows = json.loads((RESULTS / "throughput.json").read_text())["check"]["rows"]
    assert set(rows) == {f"{what}, {n}" for what in ("scoring", "a step") for n in ("1 process", "2 processes")}
    for row in rows.values():
        assert row["off_percent"] == pytest.approx(100 * (row["foreseen_s"] / row["took_s"] - 1))


def test_memory_is_flat_over_many_mini_batches(monkeypatch):
    monkeypatch.setattr(scores, "MOST_ROWS", 50)
    found = streaming_memory.measure(400, 20, filters=4096, samples=4)
    assert found["mini_batches"] == 400 and found["rows"] == 50
    assert found["unbounded_table_bytes"] == 4 * 400 * 4097 > 3 * streaming_memory.TOLERANCE_BYTES
    assert found["second_half_grew_bytes"] <= streaming_memory.TOLERANCE_BYTES
    committed = json.loads((RESULTS / "streaming_memory.json").read_text())
    assert committed["mini_batches"] == 10_000
    assert committed["second_half_grew_bytes"] <= streaming_memory.TOLERANCE_BYTES
