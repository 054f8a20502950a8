"""The examples run as they are, smaller, and write what they say."""
# SPDX-License-Identifier: MIT

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hrel_ext.report import PlaneHistory

ROOT = Path(__file__).parents[1]


def test_noise_and_null_draws_its_plot_and_tells_informative_filters_from_noise(tmp_path):
    plot, numbers = tmp_path / "plot.svg", tmp_path / "numbers.json"
    command = [sys.executable, ROOT / "examples/noise_and_null.py", "--quick", "--plot", plot, "--json", numbers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = {(row["kind"], row["samples"]): row for row in json.loads(numbers.read_text())["rows"]}
    assert rows["informative", 64]["debiased_bits"][1] > 0.2 > abs(rows["noise", 64]["debiased_bits"][1]) + 0.1
    assert rows["noise", 64]["relevance_bits"][1] > 1  # without the null it looks informative
    text = plot.read_text()
    assert "samples in the mini-batch, N" in text and "debiased relevance, bits" in text


def test_how_it_works_draws_its_pictures_of_the_highest_and_the_lowest_filter(tmp_path, monkeypatch):
    numbers = tmp_path / "numbers.json"
    options = ["--quick", "--plots", str(tmp_path), "--json", str(numbers)]
    monkeypatch.setattr(sys, "argv", ["how_it_works.py", *options])
    runpy.run_path(str(ROOT / "examples/how_it_works.py"), run_name="__main__")
    content = json.loads(numbers.read_text())
    relevance, (high, low) = content["relevance_bits"], content["filters"]
    assert relevance[high] == max(relevance) and relevance[low] == min(relevance)
    for f, own, joint in zip((high, low), content["entropy_bits"], content["joint_entropy_bits"], strict=True):
        assert own + content["label_entropy_bits"] - joint == pytest.approx(relevance[f], abs=1e-4)
    for name, label in (
        ("maps", "highest"),
        ("matrices", f"I = S(A) + S(B) - S(A, B) = {relevance[high]:.2f} bits"),
        ("relevance", "goes first"),
        ("widths", "the width that is taken"),
    ):
        assert label in (tmp_path / f"how_{name}.svg").read_text()


def test_information_plane_draws_its_pictures_and_shows_a_degenerate_width(tmp_path):
    numbers, plane = tmp_path / "numbers.json", tmp_path / "plane.safetensors"
    command = [sys.executable, ROOT / "examples/information_plane.py", "--quick", "--plots", tmp_path]
    command += ["--json", numbers, "--plane", plane]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    history = PlaneHistory.load(plane)
    assert history.layers == ("conv1", "conv2", "fc1", "fc2", "fc3")
    assert list(history.stages) == ["baseline", "cycle 1", "cycle 2", "cycle 3", "cycle 4"]
    content = json.loads(numbers.read_text())
    assert content["plane_moved_bits"] == pytest.approx(history.moved("baseline", "cycle 4").mean().item())
    for row in content["degeneracy"]:
        gap = row["layer_entropy_bits"] - row["information_bits"]
        is_degenerate = row["data"] == "normalised colour" and row["rule"] == "8.0"
        assert row["warned"] == is_degenerate and (gap < 0.01 if is_degenerate else gap > 0.2)
    for name, label in (
        ("information_plane", "I(X; T), bits"),
        ("information_plane_pruned", "the plane moved"),
        ("information_plane_widths", "kernel width sigma"),
        ("relevance_heatmap", "relevance I(A; Y), bits"),
    ):
        assert label in (tmp_path / f"{name}.svg").read_text()


def test_prune_your_model_prunes_saves_and_exports_a_network_and_draws_a_plot(tmp_path):
    command = [sys.executable, ROOT / "examples/prune_your_model.py", "--quick", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = {
        line.split("  ")[0]: line.split()[-2:] for line in done.stdout.splitlines() if line and "outputs" not in line
    }
    before, after = (int(number.replace(",", "")) for number in rows["MACs"])
    assert 0.38 <= after / before <= 0.4
    assert all(float(number.rstrip("%")) > 30 for number in rows["test accuracy"])  # two epochs; chance is 10
    assert "gives the same outputs to" in done.stdout
    layers = json.loads((tmp_path / "plan.json").read_text())["layers"]
    assert layers["stem.0"]["kept"] == layers["back.0"]["kept"]  # one stream, the same filters
    assert all(len(layer["kept"]) < layer["original"] for layer in layers.values()) and len(layers) == 3
    assert (tmp_path / "your_model.onnx").stat().st_size > 0
    assert (tmp_path / "cycles.png").read_bytes().startswith(b"\x89PNG")


def test_vendi_score_counts_the_modes_and_is_that_of_the_eigenvalues(rng):
    done = subprocess.run(
        [sys.executable, ROOT / "examples/vendi_score.py"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = [[float(number) for number in line.split()] for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == [1, 2, 5, 10]
    for modes, half, one, two in rows:  # a little above the modes, as each is spread
        assert 1.4 * modes > half > one > two > modes and one < 1.1 * modes
    vendi_score = runpy.run_path(str(ROOT / "examples/vendi_score.py"))["vendi_score"]
    samples = torch.randn(40, 3, generator=rng, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(torch.exp(-(torch.cdist(samples, samples) ** 2) / 4) / 40).clamp(min=1e-300)
    assert vendi_score(samples, sigma=2.0).item() == pytest.approx((-torch.xlogy(eigenvalues, eigenvalues)).sum().exp())
    assert vendi_score(samples, sigma=2.0, order=2.0).item() == pytest.approx(1 / eigenvalues.square().sum())
