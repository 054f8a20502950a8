"""How the time of hrel_ext.relevance grows with F, N, HW, the classes and the threads, and its extra memory with F."""
# SPDX-License-Identifier: MIT

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SEED

import hrel_ext
from hrel_ext.testing import Case

ALPHA = 1.01
CURVES = {  # what is varied: its values; the rest stays at BASE
    "filters": (8, 16, 32, 64, 128, 256, 512, 1024, 2048),
    "samples": (16, 32, 64, 128, 256, 512, 1024),
    "positions": (1, 4, 16, 64, 256, 1024, 3136, 12544),
    "classes": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    "threads": (1, 2),
}
BASE = {"filters": 64, "samples": 128, "positions": 16, "classes": 10, "threads": 0}  # 0: all that torch takes
FILTERS = {"samples": 16, "positions": 16, "threads": 512}  # fewer where a point would take too long, enough to share
SECONDS_PER_POINT, MOST_ROUNDS, LEAST_ROUNDS = 0.6, 30, 3


@pytest.mark.benchmark(group="scaling")
@pytest.mark.parametrize("curve, value", [(curve, value) for curve, values in CURVES.items() for value in values])
def test_scaling(curve, value, quick, take_turns, record_row):
    if quick and value not in CURVES[curve][:4]:
        pytest.skip("too large for --quick")
    point = BASE | {"filters": FILTERS.get(curve, BASE["filters"]), curve: value}
    n, f, d = point["samples"], point["filters"], point["positions"]
    acts, labels = Case(
        curve, "a curve", n, f, (d,), num_classes=point["classes"], data="rectified", balanced=False
    ).make(SEED)
    before = torch.get_num_threads()
    torch.set_num_threads(point["threads"] or before)
    try:

        def ours() -> torch.Tensor:
            return hrel_ext.relevance(acts, labels, sigma=d**0.5, alpha=ALPHA)

        ours()
        start = time.perf_counter()
        ours()
        rounds = SECONDS_PER_POINT / (time.perf_counter() - start)
        times = take_turns(ours, {}, rounds=max(LEAST_ROUNDS, min(MOST_ROUNDS, math.ceil(rounds))))
        point["threads"] = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    record_row(curve=curve, value=value, alpha=ALPHA, **point, **times)


@pytest.mark.benchmark(group="memory")
@pytest.mark.parametrize("filters", (256, 1024, 4096))
@pytest.mark.parametrize("threads", (1, 2))
def test_peak_memory(filters, threads, benchmark, quick, record_row):
    script = Path(__file__).with_name("peak_memory.py")
    samples, filters = (32, filters // 8) if quick else (128, filters)
    command = [sys.executable, str(script), *map(str, (samples, filters, 64, threads))]

    def measure() -> dict:
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    record_row(**benchmark.pedantic(measure, rounds=1))
