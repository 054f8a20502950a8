"""The examples run as they are, smaller, and write what they say."""
# SPDX-License-Identifier: MIT

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

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
