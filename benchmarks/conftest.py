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
    write(f"relevance, {_rows[0]['threads']} threads, {info['isa_level']}: ms, median +- half the interquartile range")
    write(f"{'layer':<16}{'shape':<18}{'ours':>16}{'PyTorch':>18}{'ratio':>8}{'bits off':>10}{'PyTorch':>10}")
    for row in _rows:
        shape = "x".join(map(str, row["shape"]))
        ours = f"{row['ours_ms']:.2f} +-{row['ours_interquartile_ms'] / 2:.2f}"
        theirs = f"{row['reference_ms']:.1f} +-{row['reference_interquartile_ms'] / 2:.1f}"
        errors = f"{row['error_bits']:>10.1e}{row['reference_error_bits']:>10.1e}"
        write(f"{row['layer']:<16}{shape:<18}{ours:>16}{theirs:>18}{row['ratio']:>7.1f}x{errors}")
    if vgg16 := [row for row in _rows if row["layer"].startswith("vgg16")]:
        ours, theirs = (sum(r["layers_of_this_shape"] * r[key] for r in vgg16) for key in ("ours_ms", "reference_ms"))
        write(f"vgg16, its 13 convolutions: {ours:.1f} ms against {theirs:.0f} ms, {theirs / ours:.1f}x")
