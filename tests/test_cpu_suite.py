"""The CPU benchmarks, tried with --quick: every row is there, and what is made of the rows is right."""
# SPDX-License-Identifier: MIT

import copy
import json
import os
import subprocess
import sys

import baselines
import bench_stages
import cpu_tables
import pytest
import report
import targets
import torch

from hrel_ext.testing import CASES, LAYERS, RESNET56, VGG16, oracle

COMPARED = ("n1", "n2", "n33", "f7", "c1", "c37", "sliced2d", "contiguous0d", "rectified", "dead", "drawn_labels")
FACTS = {"median_ms", "interquartile_ms", "rounds", "estimated_from_filters"}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in COMPARED], ids=str)
def test_published_loop_agrees_with_the_oracle(case):
    acts, labels = case.make()
    sigma = case.sigma(acts)[0].item()
    relevance = baselines.published(acts, labels, sigma=sigma)
    assert relevance.dtype == case.dtype
    # The literal quotient divides the rounding of a sum by 0.01, and takes noise around 0 for eigenvalues.
    tolerance = 1e-9 if case.dtype == torch.float64 else 5e-3
    expected = oracle(acts, labels, sigma, 1.01).relevance
    torch.testing.assert_close(relevance.double(), expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The JSON of a quick run of the whole suite."""
    path = tmp_path_factory.mktemp("suite") / "cpu.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--quick", f"--benchmark-json={path}"]
    # A child of a worker of pytest-xdist would take itself for one, and pytest-benchmark measures nothing there.
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    done = subprocess.run(command, cwd=report.ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_row_has_its_contestants(quick):
    layers = targets.rows(quick, "relevance")
    assert [row["layer"] for row in layers] == [layer.name for layer in LAYERS]
    for row in layers:
        assert set(row["error_bits"]) == {"ours", "reference", "strong", "published"}
        assert row["entropy_error_bits"] <= targets.ENTROPY_ERROR_BITS
    expected = {
        "relevance": ("ours", "reference", "strong", "published"),
        "layout": ("ours", "contiguous"),
        "entropy": ("ours", "reference"),
        "width": ("ours", "per_filter", "relevance", "reference", "reference_per_filter"),
        "model": ("ours", "forward", "reference"),
        "scaling": ("ours",),
        "null": ("ours", "few", "many"),
        "selection": ("ours", "reference"),
    }
    for group, names in expected.items():
        assert targets.rows(quick, group), group
        for row in targets.rows(quick, group):
            assert row["threads"] >= 1
            for name in names:
                assert set(row[name]) == FACTS and row[name]["median_ms"] > 0 and row[name]["rounds"] >= 1
    assert len(targets.rows(quick, "layout")) == len(VGG16) + len(RESNET56)
    assert set(cpu_tables.curves(quick)) == set(cpu_tables.CURVE_AXES)


@pytest.mark.slow
def test_stages_and_memory_are_there(quick):
    for row in targets.rows(quick, "memory"):
        assert 0 <= row["extra_bytes"] <= row["threads"] * targets.MEMORY_PER_THREAD
    stages = targets.rows(quick, "stages")
    if not stages:
        pytest.skip("stage_times was not built")
    for row in stages:
        assert set(row["stage_ms"]) == set(row["floor_ms"]) == {"distances", "exp", "joint", "reduction", "trace"}
        assert min(row["stage_ms"].values()) > 0 and row["whole_ms"] > 0


@pytest.mark.slow
def test_json_names_machine_versions_seed_and_commit(quick):
    machine = quick["machine_info"]["hrel_ext"]
    assert {"processor", "threads", "torch", "commit", "source_sha256", "seed", "quick"} <= set(machine)
    assert machine["hrel_ext"]["isa_level"] and machine["hrel_ext"]["compiler"] and machine["quick"] is True


@pytest.mark.slow
def test_pages_and_plots_are_rendered_from_it_and_a_quick_run_is_refused(quick, tmp_path):
    page = "\n".join(cpu_tables.section(quick, "cpu.json", "plots/"))
    assert all(layer.name in page for layer in LAYERS) and "nan" not in page
    assert "### The null" in page and "### Choosing a set of filters" in page
    plots = pytest.importorskip("plots", reason="matplotlib is not installed", exc_type=ImportError)
    first, second = plots.draw(quick, tmp_path / "first"), plots.draw(quick, tmp_path / "second")
    assert [path.name for path in first] == [f"{name}.svg" for name in cpu_tables.PLOTS]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    (tmp_path / "results").mkdir()
    (tmp_path / report.CPU).write_text(json.dumps(quick))
    with pytest.raises(ValueError, match="must come from a whole run, got one with --quick"):
        report.read_cpu(tmp_path)


def timed(ms: float) -> dict:
    return {"median_ms": ms, "interquartile_ms": 0.0, "rounds": 3, "estimated_from_filters": None}


def a_run() -> dict:
    """Results in which every target is met exactly."""
    rows: list[tuple[str, dict]] = []
    for layer in LAYERS:
        ratio = {**targets.OVER_REFERENCE, **dict.fromkeys((la.name for la in RESNET56), targets.NETWORKS["resnet56"])}
        rows.append(
            (
                "relevance",
                {
                    **{"layer": layer.name, "network": layer.name.split()[0], "layers_of_this_shape": layer.count},
                    **{"entropy_error_bits": 2e-5, "ours": timed(1), "strong": timed(5), "published": timed(60)},
                    "reference": timed(ratio.get(layer.name, 6)),
                },
            )
        )
    rows.append(("width", {"layer": "a", "ours": timed(1), "per_filter": timed(1), "relevance": timed(1)}))
    rows.append(("layout", {"layer": "a", "ours": timed(1.3), "contiguous": timed(1)}))
    rows += [("memory", {"threads": 2, "filters": f, "extra_bytes": 16 * targets.MIB}) for f in (8, 64)]
    rows.append(("null", {"layer": "a", "shape": [128, 8, 4], "ours": timed(1), "permutation_ms": 0.1}))
    rows.append(("selection", {"shape": [128, 512, 4, 4], "batches": 4, "kept": 128, "ours": timed(300e3)}))
    return {"benchmarks": [{"group": group, "extra_info": row} for group, row in rows]}


def test_targets_hold_at_their_limit_and_not_beyond():
    run = a_run()
    met = {t.name: t for t in targets.evaluate(run)}
    assert all(t.holds for t in met.values()), [t for t in met.values() if not t.holds]
    assert len(met) == len(targets.OVER_REFERENCE) + len(targets.NETWORKS) + len(targets.OVER_PUBLISHED) + 2 + 2 + 3 + 2
    # 13 convolutions: 2 x 16, 2 x 20, 3 x 28, 3 x 32 and 3 x 32 times the time of one of ours
    assert met["vgg16, its 13 convolutions, over the reference"].reached == pytest.approx(348 / 13)
    worse = copy.deepcopy(run)
    for row in worse["benchmarks"]:
        for name in {"ours", "per_filter"} & set(row["extra_info"]):
            row["extra_info"][name]["median_ms"] *= 1.1
        row["extra_info"]["entropy_error_bits"] = 3e-5
        if "permutation_ms" in row["extra_info"]:
            row["extra_info"]["permutation_ms"] *= 1.3
        if "extra_bytes" in row["extra_info"]:
            row["extra_info"]["extra_bytes"] += targets.MIB * row["extra_info"]["filters"]
    assert {t.verdict for t in targets.evaluate(worse)} == {"does not hold"}


def test_floor_of_a_target_is_that_of_its_steps_on_all_threads():
    run = a_run()
    assert all(t.at_floor is None for t in targets.evaluate(run))
    for row in targets.rows(run, "relevance"):
        row["threads"] = 2
    stages = [{"layer": layer.name, "floor_ms": {"distances": 0.75, "trace": 0.25}} for layer in LAYERS]
    run["benchmarks"] += [{"group": "stages", "extra_info": row} for row in stages]
    floors = {t.name: t.at_floor / t.reached for t in targets.evaluate(run) if t.at_floor is not None}
    assert set(floors.values()) == {2.0}  # ours takes 1 ms, the floors 1 ms on one thread
    assert len(floors) == len(targets.OVER_REFERENCE) + len(targets.NETWORKS) + len(targets.OVER_PUBLISHED) + 1


def test_exponent_is_the_slope_of_the_upper_half():
    cubic = [(n, 1.0) for n in (1, 2, 4)] + [(n, n**3 / 512) for n in (8, 16, 32, 64)]
    assert cpu_tables.exponent(cubic) == pytest.approx(3)


def test_digits_are_significant_ones():
    assert [cpu_tables.digits(value) for value in (0, 0.012345, 1.2345, 123.45, 12345)] == [
        *("0", "0.0123", "1.23", "123", "12345")
    ]


def test_floors_of_the_stages_by_hand():
    work = bench_stages.work(4, 3, 5, [1, 3])
    assert work["distances"] == (4 * 4 * 3 * 5, 3 * 4 * 5 * 5)
    assert work["exp"] == (0, 3 * 6 * 18) and work["trace"] == (0, 3 * 2 * 10 * 4 * 8)
    assert work["joint"][1] == pytest.approx(3 * 4 / 3 * 28) and work["reduction"][1] == pytest.approx(3 * 4 / 3 * 64)
