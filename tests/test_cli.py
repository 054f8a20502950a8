"""The command line as users type it: a short run on real digits, help, doctor, and mistakes."""
# SPDX-License-Identifier: MIT

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hrel_ext import cli, experiment
from hrel_ext.pruning import load_pruned
from hrel_ext.recipes import RECIPES
from hrel_ext.report import PlaneHistory
from hrel_ext.tracking import TensorBoard
from hrel_ext.zoo.data import mnist

ROOT = Path(__file__).parents[1]
needs_mnist = pytest.mark.skipif(
    not os.environ.get("HREL_DATA_DIR"), reason="needs MNIST: HREL_DATA_DIR is not set to a folder that holds MNIST/raw"
)


def start(*arguments, cwd=None):
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "hrel_ext.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def hrel(*arguments, cwd=None):
    process = start(*arguments, cwd=cwd)
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


def read_scalars(folder):
    """Tag to step to value, of all files: a run that goes on adds one."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_a_run_that_is_interrupted_goes_on_and_writes_a_report_and_a_network_that_loads(tmp_path):
    options = [
        "--epochs",
        "2",
        "--cycle-epochs",
        "1",
        "--final-epochs",
        "2",
        "--limit",
        "conv1=17",
        "--limit",
        "conv2=30",
    ]
    command = ["prune", "lenet5", *options, "--percent", "conv2=20", "--seed", "3", "--plane", "4", "--tensorboard"]
    process = start(*command, cwd=tmp_path)
    folder = tmp_path / "runs/lenet5-digits"
    while not (folder / "checkpoints/cycle-1").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "hrel: interrupted; the same command goes on from runs/lenet5-digits/\n"
    done = hrel(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on with the unfinished run in runs/lenet5-digits/" in done.stdout
    assert "lenet5 on digits, seed 3" in done.stdout and "test accuracy" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    report = json.loads((folder / "report.json").read_text())
    assert report["filters"] == {"before": {"conv1": 20, "conv2": 50}, "after": {"conv1": 17, "conv2": 30}}
    assert [cycle["filters"]["conv2"] for cycle in report["cycles"]] == [39, 31, 30]
    assert report["seed"] == 3 and report["environment"]["torch"] == torch.__version__
    assert report["before"]["conv_macs"] == 1_888_000
    assert report["after"]["conv_macs"] == 24 * 24 * 17 * 25 + 8 * 8 * 30 * 17 * 25
    assert len(report["cycles"][0]["score_mean"]["conv2"]) == 50
    for side in ("before", "after"):
        assert 0 < report[side]["test_accuracy"] <= 1 and report[side]["latency_ms"] > 0
    plane = PlaneHistory.load(folder / "plane.safetensors")
    stages = {name: part.stop - part.start for name, part in plane.stages.items()}
    assert stages == {"baseline": 6, "cycle 1": 3, "cycle 2": 3, "cycle 3": 3, "final": 6}  # 11 steps an epoch
    scalars = read_scalars(folder / "tensorboard")
    assert scalars["train/loss"].keys() == scalars["validation/accuracy"].keys() == set(range(1, 2 + 3 * 1 + 2 + 1))
    assert scalars["filters/conv2"] == {1: 39, 2: 31, 3: 30} and scalars["filters/conv1"] == {1: 19, 2: 18, 3: 17}
    assert scalars["cycle/macs"] == {cycle["cycle"]: cycle["macs"] for cycle in report["cycles"]}
    accuracies = {cycle["cycle"]: cycle["validation_accuracy"] for cycle in report["cycles"]}
    assert scalars["cycle/validation_accuracy"] == pytest.approx(accuracies)
    assert scalars["validation/accuracy"][2 + 3] == pytest.approx(accuracies[3])  # after the only epoch of its cycle
    tests = {2: report["before"]["test_accuracy"], 7: report["after"]["test_accuracy"]}
    assert scalars["test/accuracy"] == pytest.approx(tests)
    page = (folder / "report.html").read_text()
    assert page.count("data:image/svg+xml") >= 10 and "Information plane of baseline" in page
    assert load_pruned(folder).conv2.weight.shape == (30, 17, 5, 5)


def test_a_network_of_ones_own_is_trained_and_pruned_to_a_budget(tmp_path):
    code = (
        "from torch import nn\n"
        "def net():\n"
        "    half = lambda a, b: [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(4)]\n"
        "    return nn.Sequential(*half(1, 8), *half(8, 16), nn.Flatten(), nn.Linear(16, 10))\n"
    )
    (tmp_path / "mine.py").write_text(code)
    options = ["--epochs", "2", "--cycle-epochs", "1", "--final-epochs", "0", "--batch-size", "50", "--accumulate", "2"]
    goal = ["--target", "macs=0.5", "--cycles", "2", "--criterion", "taylor", "--where", "relu", "--precision", "bf16"]
    done = hrel("prune", "--model", "mine:net", *goal, *options, "--distillation", "0.3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs/mine.net-digits/report.json").read_text())
    assert 0.48 <= report["after"]["macs"] / report["before"]["macs"] <= 0.5 and report["after"]["chosen_epoch"] == 0
    assert report["cycles"][-1]["macs"] == report["after"]["macs"] < report["cycles"][0]["macs"]
    assert report["recipe"]["criterion"] == "taylor" and report["stopped"] == "the budget is met"
    assert report["before"]["validation_accuracy"] > 0.3  # two epochs; chance is 0.1


def test_without_tensorboard_a_run_is_refused_before_it_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hrel_ext.tracking.is_tensorboard_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["hrel", "prune", "lenet5", "--tensorboard", "--output", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err == "hrel: the scalars need tensorboard: pip install 'hrel_ext[tensorboard]'\n"
    monkeypatch.undo()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"^--tensorboard must be given to a run of one process, got WORLD_SIZE = 2$"):
        TensorBoard(tmp_path, RECIPES["lenet5", "digits"], experiment.Observer())


def test_without_the_extra_a_run_says_how_to_get_its_page(tmp_path, monkeypatch, capsys):
    report, *_ = json.loads((ROOT / "results/lenet5-mnist.json").read_text())["runs"]
    monkeypatch.setattr(experiment, "run", lambda *_, **__: report)
    monkeypatch.setitem(sys.modules, "hrel_ext.report.page", None)
    monkeypatch.setattr(sys, "argv", ["hrel", "prune", "lenet5", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 0
    assert f"pip install 'hrel_ext[report]', then hrel report {tmp_path}" in capsys.readouterr().out


def test_a_rank_of_another_launcher_does_not_silence_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert "lenet5-mnist" in hrel("recipes", cwd=tmp_path).stdout
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not hrel("recipes", cwd=tmp_path).stdout


def test_a_plan_of_a_network_with_residuals_fits_the_screen_and_trains_nothing(tmp_path):
    done = hrel("prune", "resnet56", "--data", "cifar10", "--target", "macs=0.4", "--plan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert re.search(r"MACs 125,485,696 > [0-9,]+: (39\.\d\d|40\.00) % left", done.stdout)
    assert 'not pruned, its output enters a sum of branches, which residual="stream"' in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_plan_of_a_network_of_ones_own(tmp_path):
    code = "from torch import nn\nnet = lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(8 * 9, 3))\n"
    (tmp_path / "mine.py").write_text(code)
    done = hrel("prune", "--model", "mine:net", "--input", "2,5,5", "--limit", "0=3", "--plan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"MACs {8 * 9 * 18 + 72 * 3:,} > {3 * 9 * 18 + 27 * 3}: " in done.stdout


def test_help_and_doctor():
    done = hrel("--help")
    assert done.returncode == 0 and "prune" in done.stdout and "doctor" in done.stdout
    done = hrel("doctor")
    assert done.returncode == 0, done.stderr
    for line in ("ISA level in use", "CUDA kernels built", torch.__version__):
        assert line in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (["alexnet"], "MODEL must be one of lenet5, vgg16, resnet20,"),
        (["lenet5", "--data", "cifar100"], "--data must be one of digits, mnist,"),
        (["lenet5", "--target", "macs=0.4", "--limit", "conv1=3"], "--target must be given without --limit and"),
        (["lenet5", "--cycles", "3"], "--cycles must come with --target, got no --target"),
        (["lenet5", "--input", "1,28,28"], "--input must come with --plan, got no --plan"),
        (["vgg16"], "--target or --limit must say what is to be left, got neither"),
        (["lenet5", "--criterion", "best"], "criterion must be one of hrel, "),
        (["lenet5", "--where", "bn"], "layers must have the tensor of where='bn', got convolutions without it: conv1 "),
        (["lenet5", "--scored-batches", "12"], "scored_batches must be between 1 and the 11 mini-batches"),
        (["lenet5", "--distillation", "2"], "distillation must be between 0 and 1, got 2.0"),
        (["lenet5", "--precision", "int8"], "precision must be one of no, bf16, fp16, got 'int8'"),
        (
            ["--model", "json:loads", "--plan", "--target", "macs=0.4"],
            "model must name a function without arguments that",
        ),
        (["vgg16", "--plan", "--target", "macs=0.4", "--input", "3"], "--input must be C,H,W, got '3'"),
        (["lenet5", "--limit", "conv1"], "--limit must be LAYER=INTEGER, got 'conv1'"),
        (["lenet5", "--limit", "conv7=3"], "limits must name convolutions of the model (conv1, conv2), got 'conv7'"),
        (["lenet5", "--percent", "conv1=200"], "shares['conv1'] must be above 0 and below 1, got 2.0"),
        (["lenet5", "--sigma", "-1"], "--sigma must be layer, filter or a number > 0, got '-1'"),
        (["lenet5", "--criterion", "l1", "--sigma", "3"], "--sigma must be left out with the criterion l1, which has "),
        (["lenet5", "--criterion", "taylor", "--alpha", "1"], "--alpha must be left out with the criterion taylor, "),
        (["lenet5", "--download-weights"], "--download-weights must come with --weights, got no --weights"),
        (["lenet5", "--target", "macs"], "--target must be QUANTITY=NUMBER, got 'macs'"),
        (["vgg16", "--plan", "--target", "macs=0.4"], "model must run on example_inputs, a tensor of shape (1, 1,"),
        (["lenet5", "--alpha", "0"], "--alpha must be > 0 and finite, got 0.0"),
        (["lenet5", "--device", "tpu"], "device must be cpu or cuda, got 'tpu'"),
        (["lenet5", "--data", "mnist", "--data-dir", "nowhere"], "no MNIST in 'nowhere'"),
    ),
)
def test_a_mistake_ends_in_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hrel", "prune", *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    stderr = capsys.readouterr().err
    assert exit.value.code == 2
    assert message in stderr and stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_a_file_ends_in_one_line_and_status_2(tmp_path):
    (tmp_path / "taken").touch()
    done = hrel("prune", "lenet5", "--output", "taken", cwd=tmp_path)
    assert done.returncode == 2
    assert "taken" in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


@needs_mnist
def test_mnist_is_split_without_overlap_and_scaled():
    splits = mnist(None, seed=0)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [55_000, 5_000, 10_000]
    assert splits.test.images.shape == (10_000, 1, 28, 28) and splits.test.images.dtype == torch.float32
    assert splits.test.images.min() == 0 and splits.test.images.max() == 1
    assert splits.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    both = torch.cat([splits.train.labels, splits.validation.labels]).bincount().tolist()
    assert both == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
