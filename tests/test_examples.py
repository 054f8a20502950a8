"""The examples run as they are, smaller, and write what they say."""
# SPDX-License-Identifier: MIT

import json
import subprocess
import sys
from pathlib import Path

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
