"""The matrix of Python and PyTorch versions: its table is that of its results, and what is no version is refused."""
# SPDX-License-Identifier: MIT

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests/matrix.py"


@pytest.fixture
def matrix(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("matrix", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "matrix.json")
    monkeypatch.setattr(module, "README", tmp_path / "README.md")
    return module


def test_a_row_takes_the_place_of_an_earlier_one_and_the_page_follows(matrix):
    matrix.README.write_text("above\n<!-- matrix: written by tests/matrix.py -->\nold\n<!-- /matrix -->\nbelow\n")
    tag = {"wheel": "manylinux_2_34_x86_64", "skipped": 22}
    for python, torch, passed in (("3.13.0", "2.15.0", 7), ("3.9.1", "2.4.0+cpu", 1), ("3.13.0", "2.15.0", 8)):
        matrix.write({"python": python, "torch": torch, "passed": passed, **tag})
    assert [(row["python"], row["passed"]) for row in json.loads(matrix.RESULTS.read_text())["rows"]] == [
        ("3.9.1", 1),
        ("3.13.0", 8),
    ]
    page = matrix.README.read_text()
    assert page.startswith("above\n<!-- matrix: written by tests/matrix.py -->\nTested in clean environments by `make")
    assert 'MATRIX="3.9:2.4.0 3.13:2.15.0"' in page and "| 3.13.0 | 2.15.0 | manylinux_2_34_x86_64 | 8 | 22 |\n" in page
    assert page.endswith("<!-- /matrix -->\nbelow\n") and "old" not in page


def test_the_tests_of_the_matrix_exist(matrix):
    assert [name for name in matrix.TESTS if not (ROOT / f"tests/test_{name}.py").exists()] == []


@pytest.mark.parametrize("pair", ("3.10", "3:2.4.0", "3.10:latest"))
def test_what_is_no_pair_of_versions_is_refused(pair):
    done = subprocess.run([sys.executable, SCRIPT, pair], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"PYTHON:TORCH must be versions such as 3.10:2.4.0, got {pair!r}\n"
