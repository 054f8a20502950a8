"""The record of a call of run.sh or recipes.sh: the machine and the status of every step, in protocol.json.

It is rewritten after each step. Called as ``protocol.py OUT_DIR start|describe|step|profile|finish``; ``environment``
is also what every other JSON of run.sh carries. Imports torch only where it describes the machine, so that recording a
step costs nothing.
"""
# SPDX-License-Identifier: MIT

import argparse
import csv
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FAILURES = ("failed", "timed out", "not run")  # what makes a run fail; absent tools and skipped steps do not
SOURCES = (".h", ".cuh", ".cpp", ".cu", ".py", ".sh")
TAIL_LINES = 40  # of the log of a step that failed, kept in the record


def environment(device: str) -> dict[str, Any]:
    """Describe the machine, the versions and the source: whatever a number of this run depends on."""
    import torch

    described: dict[str, Any] = {
        "device": device,
        "commit": commit(),
        "source_sha256": _source_digest(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "nvcc": _output("nvcc", "--version").rpartition("release ")[2].split(",")[0] or None,
        "gpu": None,
        "driver": None,
        "hrel_ext": None,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        described["gpu"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
        }
        query = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        described["driver"] = query.splitlines()[0].strip() if query else None
    try:
        from hrel_ext import build_info

        described["hrel_ext"] = build_info()
    except ImportError:  # described before it is built
        pass
    return described


def write_json(path: Path, content: object) -> None:
    """Write by renaming, so that a run that is stopped leaves the last whole record."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def profile_rows(lines: list[str]) -> list[dict[str, Any]]:
    """Return one row for each kernel in the CSV of Nsight Compute: name, block, grid, metrics with their units."""
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kernels: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(lines[start:]):
        if row["Kernel Name"] is None:  # a message of the profiler after the table
            continue
        kernel = kernels.setdefault(
            row["ID"],
            {"kernel": row["Kernel Name"], "block": row["Block Size"], "grid": row["Grid Size"], "metrics": {}},
        )
        if row.get("Metric Name"):
            unit = f" {row['Metric Unit']}" if row["Metric Unit"] else ""
            kernel["metrics"][row["Metric Name"]] = f"{row['Metric Value']}{unit}"
    return list(kernels.values())


def _output(*command: str) -> str:
    """What a command prints, or nothing where it does not exist or fails."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout if done.returncode == 0 else ""


def commit() -> str | None:
    """The commit, "-dirty" where files differ from it; HREL_COMMIT names it for a copy without the history."""
    if named := os.environ.get("HREL_COMMIT"):
        return named
    git = ("git", "-c", "safe.directory=*", "-C", str(ROOT))  # a copy may belong to another user
    head = _output(*git, "rev-parse", "HEAD").strip()
    dirty = bool(_output(*git, "status", "--porcelain", "--untracked-files=no").strip())
    return f"{head}-dirty" if head and dirty else head or None


def _source_digest() -> str:
    """One hash of what is built and run, for copies without the history."""
    digest = hashlib.sha256()
    folders = (ROOT / name for name in ("csrc", "hrel_ext", "benchmarks"))
    sources = [path for folder in folders for path in folder.rglob("*") if path.suffix in SOURCES]
    for path in sorted([ROOT / "CMakeLists.txt", *sources]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _start(out: Path, arguments: argparse.Namespace) -> None:
    """Begin the record; prints the architecture to build for, such as 90, on a GPU."""
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU: torch.cuda.is_available() is False; --device cpu runs the same steps small, without one")
    described = environment(arguments.device)
    write_json(out / "protocol.json", {"environment": described, "budget_s": arguments.budget, "steps": {}})
    if described["gpu"]:
        print(described["gpu"]["capability"].replace(".", ""))


def _describe(out: Path, arguments: argparse.Namespace) -> None:
    """Describe the machine again, with the hrel_ext that was built since."""
    record = json.loads((out / "protocol.json").read_text())
    record["environment"] = environment(record["environment"]["device"])
    write_json(out / "protocol.json", record)


def _step(out: Path, arguments: argparse.Namespace) -> None:
    """Add a step; of a log its last line is kept, and the end of it where the step failed."""
    record = json.loads((out / "protocol.json").read_text())
    step = {name: getattr(arguments, name) for name in ("status", "reason", "seconds", "limit_s", "exit_code")}
    if arguments.log_from is not None:
        with (out / "log.txt").open("rb") as log:
            log.seek(arguments.log_from)
            lines = log.read().decode(errors="replace").strip().splitlines()
        step["last_line"] = lines[-1].strip() if lines else ""
        if step["status"] in FAILURES:
            step["tail"] = lines[-TAIL_LINES:]
    record["steps"][arguments.name] = step
    write_json(out / "protocol.json", record)
    print(_line(arguments.name, step), flush=True)


def _line(name: str, step: dict[str, Any]) -> str:
    seconds = f"{step['seconds']:.0f} s" if step["seconds"] is not None else ""
    return f"{name:<10} {step['status']:<12} {seconds:>6}  {step['reason'] or step.get('last_line') or ''}".rstrip()


def _profile(out: Path, arguments: argparse.Namespace) -> None:
    """Turn what Nsight Compute wrote into JSON."""
    kernels = profile_rows(arguments.csv.read_text().splitlines())
    write_json(out / "profile.json", {"environment": environment("cuda"), "kernels": kernels})
    print(f"{len(kernels)} kernels profiled")
    if not kernels:
        sys.exit("Nsight Compute wrote no kernel")


def _finish(out: Path, arguments: argparse.Namespace) -> None:
    """Print how many steps ended how, and end with status 1 where one failed."""
    steps = json.loads((out / "protocol.json").read_text())["steps"]
    counts = Counter(step["status"] for step in steps.values())
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if failed := [name for name, step in steps.items() if step["status"] in FAILURES]:
        sys.exit(f"failed: {', '.join(failed)}; see {out / 'log.txt'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the run, where protocol.json is")
    commands = parser.add_subparsers(required=True)
    start = commands.add_parser("start", help="begin the record with the machine")
    start.add_argument("--device", choices=("cuda", "cpu"), required=True)
    start.add_argument("--budget", type=int, required=True, help="seconds for the whole run")
    start.set_defaults(call=_start)
    describe = commands.add_parser("describe", help="describe the machine again, after the build")
    describe.set_defaults(call=_describe)
    step = commands.add_parser("step", help="record one step")
    step.add_argument("name")
    step.add_argument("status", choices=("passed", "absent", "unavailable", "skipped", "unfinished", *FAILURES))
    step.add_argument("--reason")
    step.add_argument("--seconds", type=float)
    step.add_argument("--limit-s", type=int)
    step.add_argument("--exit-code", type=int)
    step.add_argument("--log-from", type=int, help="offset in log.txt at which the step's output begins")
    step.set_defaults(call=_step)
    profile = commands.add_parser("profile", help="turn the CSV of Nsight Compute into profile.json")
    profile.add_argument("csv", type=Path)
    profile.set_defaults(call=_profile)
    commands.add_parser("finish", help="count the steps; status 1 where one failed").set_defaults(call=_finish)
    arguments = parser.parse_args()
    arguments.call(arguments.out, arguments)


if __name__ == "__main__":
    main()
