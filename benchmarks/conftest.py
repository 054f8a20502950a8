"""Names the machine in every benchmark JSON and prints the rows as one table at the end."""
# SPDX-License-Identifier: MIT

import pytest

import hrel_ext
from hrel_ext.experiment import environment

_rows: list[dict] = []


@pytest.fixture
def record_row():
    """Keeps a row for the table at the end and in the benchmark's ``extra_info``."""

    def record(benchmark, **row) -> None:
        benchmark.extra_info.update(row)
        _rows.append(row)

    return record


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info["hrel_ext"] = environment()


def pytest_terminal_summary(terminalreporter) -> None:
    if not _rows:
        return
    info = hrel_ext.build_info()
    write = terminalreporter.write_line
    write("")
    write(f"relevance, {_rows[0]['threads']} threads, {info['isa_level']}: median ms, and the largest error in bits")
    write(f"{'layer':<16}{'shape':<20}{'ours':>9}{'PyTorch':>10}{'ratio':>8}{'error':>10}{'PyTorch':>10}")
    for row in _rows:
        shape = "x".join(map(str, row["shape"]))
        times = f"{row['ours_ms']:>9.2f}{row['reference_ms']:>10.1f}{row['ratio']:>7.1f}x"
        write(f"{row['layer']:<16}{shape:<20}{times}{row['error_bits']:>10.1e}{row['reference_error_bits']:>10.1e}")
