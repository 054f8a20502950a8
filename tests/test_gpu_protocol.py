"""benchmarks/gpu/*.sh on a CPU: every step is recorded, a failed one is named, nothing is written elsewhere."""
# SPDX-License-Identifier: MIT

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import report
import torch

import hrel_ext
from hrel_ext.testing import RESNET50, RESNET56, VGG16

SCRIPTS = Path(__file__).parents[1] / "benchmarks/gpu"
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")


def run(folder: Path, *arguments: str, script: str = "run.sh", **environment: str) -> subprocess.CompletedProcess:
    """Run the script with this Python, its build folder below ``folder``."""
    variables = os.environ | {"PYTHON": sys.executable, "HREL_BUILD_DIR": str(folder / "build")} | environment
    variables.pop("CMAKE_CUDA_ARCHITECTURES", None)
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *arguments], env=variables, capture_output=True, text=True, timeout=300
    )


def steps_of(out: Path) -> dict:
    return json.loads((out / "protocol.json").read_text())["steps"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocol")
    done = run(folder, "--device", "cpu", str(folder / "out"), HREL_COMMIT="0123abc")
    return done, folder


def test_every_step_is_recorded(finished):
    done, folder = finished
    assert done.returncode == 0, done.stdout + done.stderr
    steps = steps_of(folder / "out")
    # By what a stopped run needs most.
    order = "build tests cases memcheck bench estimator synccheck initcheck profile racecheck"
    assert list(steps) == order.split()
    assert steps["build"]["status"] == "skipped" and "that is installed" in steps["build"]["reason"]
    for name in ("tests", "cases", "bench", "estimator"):
        assert steps[name]["status"] == "passed" and steps[name]["exit_code"] == 0, steps[name]
    for name in (*SANITIZERS, "profile"):
        assert steps[name]["status"] == "skipped" and steps[name]["reason"] == "no GPU"
    if not torch.cuda.is_available():
        assert "skipped in" in steps["tests"]["last_line"]  # all of them, for want of a GPU
    assert "cases right" in steps["cases"]["last_line"]
    assert all(name in done.stdout for name in steps)


def test_record_names_machine_versions_and_source(finished):
    _, folder = finished
    for name in ("protocol.json", "layers.json"):
        environment = json.loads((folder / "out" / name).read_text())["environment"]
        assert environment["device"] == "cpu" and environment["gpu"] is None
        assert environment["torch"] == torch.__version__ and environment["commit"] == "0123abc"
        assert environment["hrel_ext"]["version"] == hrel_ext.build_info()["version"]
        assert len(environment["source_sha256"]) == 64 and environment["processor"]


def test_every_layer_has_a_row_with_all_contestants(finished):
    _, folder = finished
    results = json.loads((folder / "out/layers.json").read_text())
    assert results["complete"] and results["small"]
    assert set(results["ceilings"]) == {"bandwidth_bytes_per_s", "fma_flops_per_s", "tf32_flops_per_s"}
    assert [row["layer"] for row in results["rows"][:20]] == [layer.name for layer in (*VGG16, *RESNET50, *RESNET56)]
    for row in results["rows"]:
        assert row["right"] and row["error_bits"] <= row["tolerance_bits"] and row["warnings"] == []
        assert row["ratio_to_floor"] == pytest.approx(row["op"]["median_ms"] / row["floor_ms"])
        for name in ("op", "public", "strong", "reference"):
            assert row[name]["median_ms"] > 0 and row[name]["rounds"] >= 1 and row[name]["interquartile_ms"] >= 0
        for name in ("strong", "reference"):
            assert row[f"over_{name}"] > 0 and row[f"{name}_error_bits"] < 1e-2
    assert {total["network"]: total["layers"] for total in results["totals"]} == {
        **{"vgg16": 13, "resnet50": 53, "resnet56": 55}
    }


def test_the_estimator_is_timed_and_its_rows_are_rendered(finished):
    _, folder = finished
    results = json.loads((folder / "out/estimator.json").read_text())
    assert results["complete"] and [row["layer"] for row in results["null"]] == [layer.name for layer in VGG16]
    (selection,) = results["selection"]
    for row in (*results["null"], selection):
        assert row["error_bits"] <= row["tolerance_bits"]
    assert selection["kept"] == 2 and selection["seconds"] > 0
    page = "\n".join(report.estimator_table(results, "../"))
    assert "| vgg16 conv1-2 |" in page and "Greedy selection of 2 filters of 32 x 8 x 4 x 4 over 4 mini-batches" in page


def test_nothing_is_left_beside_the_record(finished):
    _, folder = finished
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "estimator.json",
        "layers.json",
        "log.txt",
        "protocol.json",
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["build", "out"]


def test_a_spent_budget_leaves_the_steps_that_were_not_run(tmp_path):
    done = run(tmp_path, "--device=cpu", str(tmp_path), HREL_BUDGET_S="0")
    assert done.returncode == 1 and "failed: tests, cases, bench, estimator" in done.stderr
    steps = steps_of(tmp_path)
    assert {steps[name]["status"] for name in ("tests", "cases", "bench", "estimator")} == {"not run"}
    assert steps["tests"]["reason"] == "the budget of 0 s is spent"


def test_a_failed_step_is_named_and_does_not_stop_the_others(tmp_path):
    broken = tmp_path / "broken/hrel_ext"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('planted')\n")
    done = run(tmp_path, "--device", "cpu", str(tmp_path / "out"), PYTHONPATH=str(broken.parent))
    assert done.returncode == 1 and "failed: tests, cases, bench, estimator" in done.stderr
    steps = steps_of(tmp_path / "out")
    assert {steps[name]["status"] for name in ("tests", "cases", "bench", "estimator")} == {"failed"}
    assert any("planted" in line for line in steps["bench"]["tail"])
    assert "planted" in (tmp_path / "out/log.txt").read_text()


def test_a_machine_without_a_gpu_is_one_sentence(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run(tmp_path, str(tmp_path / "out"))
    assert done.returncode == 2 and done.stderr.startswith("no GPU: torch.cuda.is_available() is False")
    done = run(tmp_path, "--device", "tpu")
    assert done.returncode == 2 and done.stderr == "--device must be cuda or cpu, got 'tpu'\n"


RUN = """
import json, pathlib, sys
arguments = dict(zip(sys.argv[3::2], sys.argv[4::2]))
output = pathlib.Path(arguments["--output"])
if not output.exists():
    output.mkdir()
    sys.exit(124)  # as if it had been cut off
(output / "report.json").write_text(json.dumps({"name": sys.argv[2], **arguments}))
"""


def test_a_recipe_goes_on_in_the_next_call_until_its_report_is_there(tmp_path):
    stub = tmp_path / "stub/hrel_ext"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub / "cli.py").write_text(RUN)

    def call(budget):
        out = str(tmp_path / "out")
        options = {"HREL_BUDGET_S": budget, "HREL_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(stub.parent)}
        done = run(tmp_path, "--device", "cpu", out, script="recipes.sh", HREL_SEED="7", **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return steps_of(tmp_path / "out")["lenet5-digits"]

    report, run_folder = tmp_path / "out/lenet5-digits-seed7.json", tmp_path / "out/runs/lenet5-digits-seed7"
    assert call("60")["status"] == "unfinished" and run_folder.is_dir() and not report.exists()
    assert call("60")["status"] == "passed"
    assert json.loads(report.read_text()) == {
        **{"name": "lenet5-digits", "--schedule": "short", "--device": "cpu", "--seed": "7"},
        **{"--data-dir": str(tmp_path / "data"), "--output": str(run_folder)},
    }
    again = call("0")
    assert again["status"] == "passed" and again["reason"] == "finished in an earlier call"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build", "out", "stub"]


def test_a_recipe_without_time_left_is_unfinished_which_is_no_failure(tmp_path):
    done = run(tmp_path, "--device", "cpu", str(tmp_path / "out"), script="recipes.sh", HREL_BUDGET_S="0")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "1 skipped, 1 unfinished"
    assert steps_of(tmp_path / "out")["lenet5-digits"]["reason"] == "the budget of 0 s is spent"
