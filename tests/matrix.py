"""The wheel in clean environments: one for each PYTHON:TORCH, with the test suite on it, and the table of README.md.

    python tests/matrix.py 3.10:2.4.0 3.13:2.15.0        pythonX.Y must be on PATH
    python tests/matrix.py --tests "tests/test_ops.py" 3.10:2.4.0

Of each environment a row of results/matrix.json is written, in place of an earlier one of the same versions.
"""
# SPDX-License-Identifier: MIT

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS, README = ROOT / "results/matrix.json", ROOT / "README.md"
EXTRAS, TOOLS = "prune,cli,zoo,report", ("pytest>=8,<10", "pytest-benchmark>=4,<6", "hypothesis>=6.100,<7", "fvcore")
# What tests the package as installed. The rest reads the source tree or builds it, which make test does.
TESTS = (
    "checkpoint collect criteria cycles differentiable entropy errors gradients gram groups import information_plane "
    "label_gram matrix_entropy null ops page plan plots pruner reference relevance sampling scores selection training "
    "width zoo"
).split()


def wheel_for(python: str) -> Path:
    """Build the wheel as `make wheel` does."""
    subprocess.run(["make", "wheel", f"PYTHON=python{python}", f"VENV=build/matrix/{python}"], cwd=ROOT, check=True)
    return next((ROOT / "dist").glob(f"*-cp{python.replace('.', '')}-*.whl"))


def run(python: str, torch: str, wheel: Path, tests: list[str]) -> dict[str, str | int]:
    """Install the wheel beside a torch into a new environment, and run the tests from a folder without the sources."""
    with tempfile.TemporaryDirectory(prefix="hrel-matrix-") as folder:
        subprocess.run([f"python{python}", "-m", "venv", f"{folder}/venv"], check=True)
        inner = f"{folder}/venv/bin/python"
        packages = [f"hrel_ext[{EXTRAS}] @ {wheel.as_uri()}", f"torch=={torch}", *TOOLS]
        subprocess.run([inner, "-m", "pip", "install", "--quiet", *packages], check=True)
        return run_tests(inner, Path(folder), tests) | {"wheel": re.search(r"-(\w+)\.whl", wheel.name)[1]}


def run_tests(python: str, folder: Path, tests: list[str]) -> dict[str, str | int]:
    """Run the tests with an interpreter that has the wheel; raise if one fails or the sources were found instead."""
    for name in ("tests", "benchmarks", "results", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    code = "import hrel_ext, platform, torch; print(hrel_ext.__file__, platform.python_version(), torch.__version__)"
    told = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    if "site-packages" not in told[0]:
        raise RuntimeError(f"hrel_ext must come from the wheel, got {told[0]}")
    done = subprocess.run([python, "-m", "pytest", *tests], cwd=folder, capture_output=True, text=True)
    counts = {name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout[-300:])}
    if done.returncode != 0:
        raise RuntimeError(f"the tests failed on Python {told[1]}, torch {told[2]}:\n{done.stdout[-4000:]}")
    return {"python": told[1], "torch": told[2], "passed": counts["passed"], "skipped": counts.get("skipped", 0)}


def table(rows: list[dict[str, str | int]]) -> str:
    """The rows as a table of Markdown, with a sentence on it."""
    pairs = " ".join(f"{row['python'].rpartition('.')[0]}:{row['torch'].partition('+')[0]}" for row in rows)
    lines = [
        f'Tested in clean environments by `make matrix MATRIX="{pairs}"` ([matrix.json](results/matrix.json)):',
        "",
    ]
    lines += ["| Python | PyTorch | wheel | tests passed | skipped |", "|---|---|---|---|---|"]
    lines += [f"| {r['python']} | {r['torch']} | {r['wheel']} | {r['passed']} | {r['skipped']} |" for r in rows]
    return "\n".join(lines)


def write(row: dict[str, str | int]) -> None:
    """Put a row into the results, and all of them into README.md."""
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = [r for r in rows if (r["python"], r["torch"]) != (row["python"], row["torch"])] + [row]
    rows.sort(key=lambda r: [[int(n) for n in re.findall(r"\d+", r[key])] for key in ("python", "torch")])
    RESULTS.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    parts = re.split(r"(<!-- matrix.*?-->\n).*?(<!-- /matrix -->)", README.read_text(), flags=re.S)
    README.write_text("".join([*parts[:2], table(rows) + "\n", *parts[2:]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", default=" ".join(f"tests/test_{name}.py" for name in TESTS), help="what pytest runs")
    parser.add_argument("pairs", nargs="+", metavar="PYTHON:TORCH", help="such as 3.10:2.4.0")
    arguments = parser.parse_args()
    for pair in arguments.pairs:
        python, _, torch = pair.partition(":")
        if not re.fullmatch(r"3\.\d+", python) or not re.fullmatch(r"\d+(\.\d+)+(\+\w+)?", torch):
            sys.exit(f"PYTHON:TORCH must be versions such as 3.10:2.4.0, got {pair!r}")
        write(run(python, torch, wheel_for(python), arguments.tests.split()))


if __name__ == "__main__":
    main()
