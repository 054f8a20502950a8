"""Instructions of the distance and the eigen stage against the record: python benchmarks/instruction_counts.py.

Counted by valgrind, so that the figures repeat on any machine, however busy it is. --write records them anew in
instruction_counts.json; a figure stands for the compiler that it was recorded with, no other. Each stage is a fixed
problem of N = 128 samples and ten classes at the level x86-64-v3, on one thread; what the distance problems share with
the same one at HW = 1 (all but the distances) is taken off.
"""
# SPDX-License-Identifier: MIT

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import drivers

RECORD = Path(__file__).with_suffix(".json")
TOLERANCE = 0.03  # a compiler's mood moves a count by a fraction of a per cent, a lost optimisation by more
STAGES = {  # problem (F, HW), and the one that is taken off
    "distances, long maps": ((8, 512), (8, 1)),
    "distances, short maps": ((8, 64), (8, 1)),
    "eigen": ((16, 1), None),
}


def measure() -> dict[str, Any]:
    """Count every stage; returns the compiler and the counts.

    Raises:
        drivers.Unavailable: without valgrind or what the build needs.
    """
    if shutil.which("valgrind") is None:
        raise drivers.Unavailable("instructions are counted by valgrind, which is not on PATH")
    driver = drivers.build("instruction_driver")
    problems = {problem for stage in STAGES.values() for problem in stage if problem}
    compilers, counted = set(), {}
    for problem in sorted(problems):
        compiler, counted[problem] = _count(driver, problem)
        compilers.add(compiler)
    (compiler,) = compilers
    return {
        "compiler": compiler,
        "counts": {name: counted[whole] - counted.get(rest, 0) for name, (whole, rest) in STAGES.items()},
    }


def _count(driver: Path, problem: tuple[int, int]) -> tuple[str, int]:
    """The compiler of the driver, and the instructions of one problem."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        options = ("--tool=callgrind", "--toggle-collect=measured", f"--callgrind-out-file={out}")
        compiler = drivers.run("valgrind", "--quiet", *options, str(driver), *map(str, problem)).strip()
        return compiler, int(re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.M).group(1))


def cannot_compare(measured: dict[str, Any], record: dict[str, Any]) -> str | None:
    """The reason why the counts say nothing about each other, or None."""
    if measured["compiler"] == record["compiler"]:
        return None
    return (
        f"{RECORD.name} was recorded with {record['compiler']}, this build is by {measured['compiler']}: cannot compare"
    )


def grown(measured: dict[str, Any], record: dict[str, Any]) -> list[str]:
    """One sentence for every stage that takes more instructions than the record allows."""
    found = []
    for name, recorded in record["counts"].items():
        growth = measured["counts"][name] / recorded - 1
        if growth > TOLERANCE:
            found.append(
                f"{name}: {measured['counts'][name]:,} instructions, {100 * growth:.1f} % more than the {recorded:,} "
                f"in {RECORD.name}; where that is meant: python benchmarks/{Path(__file__).name} --write"
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="record the counts of this build")
    arguments = parser.parse_args()
    measured = measure()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"compiler": None, "counts": {}}
    for name, count in measured["counts"].items():
        before = record["counts"].get(name)
        print(f"{name:<24}{count:>14,}" + (f"  {100 * (count / before - 1):+.2f} %" if before else ""))
    if arguments.write:
        sys.path.insert(0, str(Path(__file__).parent / "gpu"))
        from protocol import environment, write_json

        valgrind = drivers.run("valgrind", "--version").strip()
        write_json(RECORD, {**measured, "valgrind": valgrind, "seed": 1787, "environment": environment("cpu")})
    elif reason := cannot_compare(measured, record):
        print(reason)
    elif found := grown(measured, record):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
