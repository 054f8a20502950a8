"""Writes the results table of README.md from the JSON in results/: python benchmarks/report.py."""
# SPDX-License-Identifier: MIT

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: written by benchmarks/report.py -->", "<!-- /results -->"


def pruning_table(path: Path) -> list[str]:
    report = json.loads(path.read_text())
    before, after, filters = report["before"], report["after"], report["filters"]
    rows = [(f"filters, {layer}", str(n), str(filters["after"][layer])) for layer, n in filters["before"].items()]
    for key, name in (("parameters", "parameters"), ("macs", "MACs"), ("conv_macs", "MACs of the convolutions")):
        change = 100 * (after[key] / before[key] - 1)
        rows.append((name, f"{before[key]:,}", f"{after[key]:,} ({change:+.1f} %)"))
    batch, threads = before["latency_batch_size"], before["latency_threads"]
    latency = f"latency, batch of {batch}, {threads} threads"
    rows.append((latency, f"{before['latency_ms']:.1f} ms", f"{after['latency_ms']:.1f} ms"))
    points = 100 * (after["test_accuracy"] - before["test_accuracy"])
    tests = [f"{100 * side['test_accuracy']:.2f} %" for side in (before, after)]
    rows.append(("**test accuracy**", tests[0], f"{tests[1]} ({points:+.2f} points)"))
    seconds, environment = report["seconds"]["total"], report["environment"]
    return [
        f"`{report['command']}` (seed {report['seed']}, {seconds / 60:.1f} minutes on {environment['threads']} cores "
        f"of {environment['processor']}, torch {environment['torch']}; [{path.name}](results/{path.name})):",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def benchmark_table(path: Path) -> list[str]:
    results = json.loads(path.read_text())
    machine = results["machine_info"]["hrel_ext"]
    rows = [b["extra_info"] for b in results["benchmarks"]]
    lines = [
        f"Scoring a layer, `make bench`, {rows[0]['threads']} threads on {machine['processor']} "
        f"({machine['hrel_ext']['isa_level']} kernels), torch {machine['torch']}, against `hrel_ext.reference` "
        f"(cdist, exp, batched eigvalsh) on the same tensors in the same run ([{path.name}](results/{path.name})):",
        "",
        "| layer | N x F x map | ours, ms | PyTorch, ms | ratio | error, bits (PyTorch) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = " x ".join(map(str, row["shape"]))
        errors = f"{row['error_bits']:.0e} ({row['reference_error_bits']:.0e})"
        times = f"{row['ours_ms']:.1f} | {row['reference_ms']:.0f} | {row['ratio']:.0f}x"
        lines.append(f"| {row['layer']} | {shape} | {times} | {errors} |")
    return lines


def main() -> None:
    readme = ROOT / "README.md"
    head, rest = readme.read_text().split(BEGIN)
    tail = rest.split(END)[1]
    tables = pruning_table(ROOT / "results/lenet5-mnist.json"), benchmark_table(ROOT / "results/bench_relevance.json")
    readme.write_text("\n".join([head + BEGIN, *tables[0], "", *tables[1], END]) + tail)


if __name__ == "__main__":
    main()
