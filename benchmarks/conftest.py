"""What the CPU benchmarks share: the contestants take turns, every JSON names the machine, --quick tries the suite."""
# SPDX-License-Identifier: MIT

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from bench_layers import Timing, shrink
from protocol import environment

from hrel_ext.testing import Layer

SEED = 1787
ROUNDS = 15
LEAST_TURNS = 5  # of a contestant, or its median says little
_rows: list[tuple[str, str, dict]] = []


def pytest_addoption(parser) -> None:
    parser.addoption("--quick", action="store_true", help="tiny problems and few rounds, to try the suite")


@pytest.fixture(scope="session")
def quick(request) -> bool:
    return request.config.getoption("--quick")


@pytest.fixture
def sized(quick) -> Callable[[Layer], Layer]:
    """The layer that stands for a layer in this run: itself, or a tiny one."""
    return shrink if quick else lambda layer: layer


@pytest.fixture
def take_turns(benchmark, quick):
    """Times several calls in turn, so that a machine that slows down slows all of them; every call is warmed up."""

    def run(
        ours: Callable[[], object],
        others: dict[str, Callable[[], object]],
        *,
        rounds: int = ROUNDS,
        every: dict[str, int] | None = None,
    ) -> dict[str, Timing]:
        """Time ``ours`` in each of the rounds and each other one in every n-th of them; the results are by name."""
        assert quick or all(len(range(0, rounds, n)) >= LEAST_TURNS for n in (every or {}).values())
        taken: dict[str, list[float]] = {name: [] for name in others}
        turn = -1  # the warm-up

        def others_first() -> None:  # pytest-benchmark calls it before each turn of ours, outside of the clock
            nonlocal turn
            for name, call in others.items():
                if turn >= 0 and turn % (every or {}).get(name, 1):
                    continue
                start = time.perf_counter()
                call()
                if turn >= 0:
                    taken[name].append(1e3 * (time.perf_counter() - start))
            turn += 1

        benchmark.pedantic(ours, setup=others_first, rounds=2 if quick else rounds, warmup_rounds=1)
        taken["ours"] = [1e3 * seconds for seconds in benchmark.stats.stats.data]
        return {name: timing(times) for name, times in taken.items()}

    return run


def timing(times_ms: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(times_ms if times_ms[1:] else times_ms * 2, n=4, method="inclusive")
    return Timing(median, upper - lower, len(times_ms))


@pytest.fixture
def record_row(request, benchmark):
    """Keeps a row in the benchmark's ``extra_info`` and for the list at the end; a Timing becomes a dict."""

    def record(**row) -> None:
        row = {key: asdict(value) if isinstance(value, Timing) else value for key, value in row.items()}
        row["threads"] = row.get("threads", torch.get_num_threads())
        benchmark.extra_info.update(row)
        _rows.append((benchmark.group, request.node.name, row))

    return record


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    quick = config.getoption("--quick")
    output_json["machine_info"]["hrel_ext"] = environment("cpu") | {"seed": SEED, "quick": quick}
    output_json["machine_info"].get("cpu", {}).pop("flags", None)  # the ISA level says what counts
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)  # the medians and the spread of all contestants are in extra_info
        row["params"] = None


def pytest_terminal_summary(terminalreporter) -> None:
    for group, name, row in _rows:
        times = {key: value["median_ms"] for key, value in row.items() if isinstance(value, dict) and "rounds" in value}
        ours = times.pop("ours", None)
        text = "" if ours is None else f"{ours:.3g} ms" + "".join(f", {k} {v:.3g} ms" for k, v in times.items())
        terminalreporter.write_line(f"{group:<12}{name:<44}{text}")
