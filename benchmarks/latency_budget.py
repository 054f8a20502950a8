"""Latency budgets, met and then measured again in a fresh process: is the pruned network as fast as was asked?

    python benchmarks/latency_budget.py     writes results/latency_budget.json; a few minutes on a quiet machine

A network with random weights is pruned to a share of its latency. Another process loads both networks and times them
by turns. A machine whose clock drifts slows both, so what counts is the pruned network's time as a share of the whole
network's: it must be within 10 % of the share that was asked. The milliseconds are written beside it.

glibc gives large pieces of memory back to the system after each pass until it has seen larger ones, as a process that
has pruned a network has and a fresh one has not; page faults then slow it. Both are told to keep them.
"""
# SPDX-License-Identifier: MIT

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from hrel_ext.experiment import environment
from hrel_ext.pruning import CRITERIA, compare_latency, load_pruned, prune, save_pruned
from hrel_ext.zoo.models import make_model

ROOT = Path(__file__).parents[1]
CASES = (  # name, images in a batch, share of the latency that is left
    ("vgg16", 8, 0.3),
    ("vgg16", 8, 0.6),
    ("resnet56", 64, 0.7),
    ("resnet18", 8, 0.75),
)
SIDE, TURNS, SEED, TOLERANCE = 32, 45, 1788, 0.1
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def _images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(SEED))


def again(folder: str, batch: int) -> dict[str, float]:
    """Medians in ms of the whole and of the pruned network in ``folder``, and quartiles of the share, by turns."""
    name = json.loads((Path(folder) / "plan.json").read_text())["model"]
    models = [make_model(name), load_pruned(folder)]
    turns = compare_latency(models, _images(batch), turns=TURNS)
    whole_ms, pruned_ms = (statistics.median(turn.median_ms for turn in measured) for measured in turns)
    shares = [pruned.median_ms / whole.median_ms for whole, pruned in zip(*turns, strict=True)]
    return {"whole_ms": whole_ms, "pruned_ms": pruned_ms, "share": statistics.quantiles(shares, n=4)}


def measure(name: str, batch: int, share: float) -> dict[str, object]:
    """A row of the results."""
    torch.manual_seed(SEED)
    whole = make_model(name)
    images = _images(batch)
    (turns,) = compare_latency([whole], images, turns=TURNS)
    asked_ms = share * statistics.median(turn.median_ms for turn in turns)
    model = copy.deepcopy(whole)
    batches = [(images, torch.arange(batch))]
    result = prune(model, batches, images, target={"latency_ms": asked_ms}, criterion=CRITERIA["l1"](batches))
    whole_ms, pruned_ms = result.plan.latency_ms
    with tempfile.TemporaryDirectory() as folder:
        save_pruned(folder, model, result, input_shape=(3, SIDE, SIDE), model_name=name)
        command = [sys.executable, __file__, "--again", folder, str(batch)]
        fresh = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        "model": name,
        "batch_size": batch,
        "asked_ms": asked_ms,
        "asked_share": asked_ms / whole_ms,
        "planned": {"whole_ms": whole_ms, "pruned_ms": pruned_ms, "share": pruned_ms / whole_ms},
        "macs_left": result.plan.after.macs / result.plan.before.macs,
        "again": fresh,
        "off_percent": 100 * (fresh["share"][1] / (asked_ms / whole_ms) - 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first so many of the networks")
    parser.add_argument("--json", type=Path, default=ROOT / "results/latency_budget.json")
    parser.add_argument("--again", nargs=2, help=argparse.SUPPRESS)  # what the fresh process is told
    args = parser.parse_args()
    if args.again:
        print(json.dumps(again(args.again[0], int(args.again[1]))))
        return
    if not KEEP_MEMORY.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    rows = []
    for name, batch, share in CASES[: args.cases]:
        rows.append(row := measure(name, batch, share))
        print(
            f"{name}: asked {row['asked_ms']:.2f} ms, {row['asked_share']:.1%} of the whole; in a fresh process "
            f"{row['again']['pruned_ms']:.2f} ms, {row['again']['share'][1]:.1%}: {row['off_percent']:+.1f} %",
            flush=True,
        )
    settings = {"command": "python benchmarks/latency_budget.py", "seed": SEED, "environment": environment()}
    settings["allocator"] = KEEP_MEMORY
    args.json.write_text(json.dumps(settings | {"tolerance": TOLERANCE, "rows": rows}, indent=1) + "\n")
    if missed := [row["model"] for row in rows if abs(row["off_percent"]) > 100 * TOLERANCE]:
        print(f"not within {TOLERANCE:.0%} of what was asked: {', '.join(missed)}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
