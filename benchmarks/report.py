"""Writes docs/results.md with its plots and the results tables of README.md and docs/index.md from the JSON in
results/, and prints the targets of the CPU: python benchmarks/report.py.

With --check it writes nothing and fails where one of the pages is not what the JSON renders to.
"""
# SPDX-License-Identifier: MIT

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import cpu_tables
import criteria_tables
from cpu_tables import CPU, digits, ms, shape_of, table
from targets import evaluate

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: written by benchmarks/report.py -->", "<!-- /results -->"
PRUNING = ("results/lenet5-mnist.json", "results/lenet5-mnist-2-3.json")  # runs with the same seeds to other limits
PLOT_FOLDER = "docs/plots"
GPU_LAYERS, GPU_ESTIMATOR = "results/gpu/layers.json", "results/gpu/estimator.json"
GPU_ESTIMATES = "results/gpu/estimates.json"
GPU_STEPS, GPU_PROFILE = "results/gpu/protocol.json", "results/gpu/profile.json"
PROFILED = (  # of the many metrics of Nsight Compute
    *("Duration", "Compute (SM) Throughput", "Memory Throughput", "L2 Hit Rate", "Achieved Occupancy"),
    *("Registers Per Thread", "Warp Cycles Per Issued Instruction"),
)
BASELINES = {"strong": "strong", "strong_cupy": "strong, CuPy's solver", "reference": "naive"}

Json = dict[str, Any]


def link(path: str, up: str) -> str:
    return f"[{Path(path).name}]({up}{path})"


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def pruning_table(experiments: list[list[Json]], up: str) -> list[str]:
    """Of runs with the same seeds, to one set of limits after the other: one column for each."""
    first = experiments[0][0]
    for experiment in experiments:
        if [run["seed"] for run in experiment] != [run["seed"] for run in experiments[0]]:
            raise ValueError(f"the runs must have the same seeds in each of {', '.join(PRUNING)}")
    before, lasts = first["before"], [experiment[0] for experiment in experiments]
    rows = [
        [f"filters, {layer}", str(n), *(str(last["filters"]["after"][layer]) for last in lasts)]
        for layer, n in first["filters"]["before"].items()
    ]
    for key, name in (("parameters", "parameters"), ("macs", "MACs"), ("conv_macs", "MACs of the convolutions")):
        left = [f"{last['after'][key]:,} ({100 * (last['after'][key] / before[key] - 1):+.1f} %)" for last in lasts]
        rows.append([name, f"{before[key]:,}", *left])
    batch, threads = before["latency_batch_size"], before["latency_threads"]
    latencies = [
        statistics.median(run[side]["latency_ms"] for run in runs if run[side]["latency_threads"] == threads)
        for side, runs in (("before", experiments[0]), *(("after", experiment) for experiment in experiments))
    ]
    rows.append([f"latency, batch of {batch}, {_threads(threads)}", *(f"{ms:.1f} ms" for ms in latencies)])
    tests = [f"{100 * statistics.mean(run['before']['test_accuracy'] for run in experiments[0]):.2f} %"]
    for runs in experiments:
        changes = [100 * (run["after"]["test_accuracy"] - run["before"]["test_accuracy"]) for run in runs]
        accuracy = 100 * statistics.mean(run["after"]["test_accuracy"] for run in runs)
        span = f" points, {min(changes):+.2f} to {max(changes):+.2f})" if len(runs) > 1 else " points)"
        tests.append(f"{accuracy:.2f} % ({statistics.mean(changes):+.2f}{span}")
    rows.append(["**test accuracy**", *tests])
    commands = [f"`{last['command'].split(' --seed')[0]}`" for last in lasts]
    minutes: dict[int, list[float]] = {}
    for run in (run for runs in experiments for run in runs):
        minutes.setdefault(run["environment"]["threads"], []).append(run["seconds"]["total"] / 60)
    took = [f"{statistics.median(each):.0f} minutes a run on {_threads(n)}" for n, each in sorted(minutes.items())]
    environment, seeds = first["environment"], ", ".join(str(run["seed"]) for run in experiments[0])
    return [
        f"{' and '.join(commands)}, `--seed` {seeds}: means, medians of the latency; "
        f"{', '.join(took)} of {environment['processor']}, torch {environment['torch']} "
        f"({', '.join(link(path, up) for path in PRUNING)}):",
        "",
        *table(["", "before", *("after" for _ in lasts)], rows),
    ]


def cycles_table(experiments: list[list[Json]]) -> list[str]:
    """Of the longest way, the filters, which every seed has, and the mean accuracy."""
    runs = max(experiments, key=lambda experiment: len(experiment[0]["cycles"]))
    layers = list(runs[0]["filters"]["before"])
    rows = [
        [
            str(cycles[0]["cycle"]),
            *(str(cycles[0]["filters"][layer]) for layer in layers),
            f"{100 * statistics.mean(cycle['validation_accuracy'] for cycle in cycles):.2f} %",
        ]
        for cycles in zip(*(run["cycles"] for run in runs), strict=True)
    ]
    return table(["cycle", *(f"filters, {layer}" for layer in layers), "validation accuracy, mean"], rows)


def milliseconds(row: Json, name: str) -> str:
    return ms(row, name) if name in row else row.get(f"{name}_absent", "")


def gpu_tables(results: Json, up: str) -> list[str]:
    environment, ceilings = results["environment"], results["ceilings"]
    gpu, tera = environment["gpu"], {name: value / 1e12 for name, value in ceilings.items()}
    lines = [
        f"{gpu['name']} (sm_{gpu['capability'].replace('.', '')}), driver {environment['driver']}, torch "
        f"{environment['torch']} (CUDA {environment['torch_cuda']}), nvcc {environment['nvcc']}, commit "
        f"`{environment['commit']}`, {environment['time']} ({link(GPU_LAYERS, up)}). {results['dtype']} input, alpha = "
        f"{results['alpha']}, {results['classes']} classes. Measured ceilings: copy "
        f"{tera['bandwidth_bytes_per_s']:.2f} TB/s, float32 product {tera['fma_flops_per_s']:.0f} TFLOP/s, TF32 "
        f"product {tera['tf32_flops_per_s']:.0f} TFLOP/s.",
        "",
    ]
    if not results["complete"]:
        lines += ["The time limit of the run came before its last layer.", ""]
    baselines = [name for name in BASELINES if any(name in row for row in results["rows"])]
    names = [BASELINES[b] for b in baselines]
    head = ["network", "N", "layers", "op, ms", "floors", "public, ms", *(f"{name}, ms" for name in names)]
    head += [*(f"over {name}" for name in names), "target"]
    lines += table(head, [total_row(total, baselines) for total in results["totals"]])
    head = ["layer", "N x F x map", "layers", "op, ms", "floors", "host, ms", "public, ms"]
    head += [*(f"{name}, ms" for name in names), "error, bits (naive)"]
    for network, num_samples in dict.fromkeys((row["network"], row["shape"][0]) for row in results["rows"]):
        rows = [row for row in results["rows"] if (row["network"], row["shape"][0]) == (network, num_samples)]
        lines += ["", f"{network}, N = {num_samples}:", "", *table(head, [layer_row(row, baselines) for row in rows])]
    return lines


def gpu_summary(root: Path, up: str) -> list[str]:
    """The totals of the networks alone; nothing where no GPU has been measured."""
    results = read_gpu(root)
    if results is None:
        return []
    environment = results["environment"]
    stale = []
    if read_estimates(root):
        where = f"[estimates]({up}docs/results.md#estimates-for-the-kernels-as-they-are-now)"
        stale = [
            f"These are the kernels of commit `{environment['commit'][:7]}`. Those of today are new and have not run "
            f"on a GPU; there are {where} of them.",
            "",
        ]
    rows = [
        [
            *(total["network"], str(total["num_samples"]), str(total["layers"])),
            *(digits(total["op_ms"]), digits(total["public_ms"])),
            *(f"{'~' if total.get(f'{b}_estimated') else ''}{total[f'over_{b}']:.0f}x" for b in BASELINES),
        ]
        for total in results["totals"]
        if all(f"over_{b}" in total for b in BASELINES)
    ]
    return [
        f"All convolutions of a network on an {environment['gpu']['name']}, `make bench-gpu`, torch "
        f"{environment['torch']}: the kernels alone, `hrel_ext.relevance` as its caller waits for it, and how many "
        f"times faster the latter is than the [baselines]({up}docs/results.md#scoring-a-layer-on-a-gpu) "
        f"({link(GPU_LAYERS, up)}). PyTorch before 2.12 solves one eigenproblem after the other there; CuPy's solver "
        "takes them in batches and is the fairer one to compare with.",
        "",
        *table(["network", "N", "layers", "kernels, ms", "call, ms", *BASELINES.values()], rows),
        "",
        *stale,
    ]


def read_estimates(root: Path) -> Json | None:
    """What is estimated of kernels that are newer than those measured; None where the measured ones are the newer."""
    estimates, results = read(root, GPU_ESTIMATES), read_gpu(root)
    if estimates and results and estimates["environment"]["time"] < results["environment"]["time"]:
        return None
    return estimates


def estimates_tables(estimates: Json, up: str) -> list[str]:
    environment, gpu = estimates["environment"], estimates["assumed"]["gpu"]
    stages = [
        [name, *(f"{stage[key]:,}" for key in ("issue", "pipe", "alone"))]
        for name, stage in {**estimates["stages"], "**a matrix**": estimates["whole"]}.items()
    ]
    product = estimates["products_per_position"]
    networks = [
        [
            network["network"],
            str(network["layers"]),
            *(f"{network[key] / 1e3:.2f}" for key in ("floor_us", "throughput_us", "overlap_us", "no_overlap_us")),
        ]
        for network in estimates["networks"]
    ]
    return [
        "### Estimates for the kernels as they are now",
        "**Not measured.** The kernels for more than 32 samples have been written anew since the run above and have "
        "not run on a GPU: what follows is counted in their machine code by `python benchmarks/gpu/estimates.py` "
        f"(sm_90, nvcc {environment['nvcc']}, commit `{environment['commit']}`, {link(GPU_ESTIMATES, up)}). Of one "
        "matrix, N = "
        f"{estimates['num_samples']}, {estimates['assumed']['classes']} classes, in cycles of a multiprocessor: what "
        "its schedulers issue, the busiest of their pipes, and the slowest way through a block that is alone there. A "
        f"position of a large map by products adds {product['issue']:.0f}, {product['pipe']:.0f} and "
        f"{product['alone']:.0f} cycles.",
        "",
        *table(["stage", "issue", "pipe", "alone"], stages),
        "",
        f"What they imply for all convolutions of a network on an H100 ({gpu['multiprocessors']} multiprocessors at "
        f"{gpu['clock_hz'] / 1e9:g} GHz, {gpu['launch_us']:g} us a launch), in ms: the floor of its data sheet, by "
        "throughput alone, with resident blocks that hide each other's latency as far as they can, and with blocks "
        "that hide none. The targets are 1.6 ms for vgg16 and 12 ms for resnet50. How far to trust it: a count of this "
        "kind, of code a little older than that measured above, had said 2.11 ms (1.50 to 3.50) and 17.9 ms (14.5 to "
        "32.3), where 2.84 and 22.1 were measured. It does not count the time that instructions take to arrive; the "
        "kernels measured above were 350 KB of code each, most of which a block ran through a few times.",
        "",
        *table(["network", "layers", "floor", "throughput", "overlap", "no overlap"], networks),
    ]


def total_row(total: Json, baselines: list[str]) -> list[str]:
    timed = {b: f"{b}_ms" in total for b in baselines}
    marks = {b: "~" if total.get(f"{b}_estimated") else "" for b in baselines}
    return [
        total["network"],
        str(total["num_samples"]),
        str(total["layers"]),
        digits(total["op_ms"]),
        f"{total['ratio_to_floor']:.1f}",
        digits(total["public_ms"]),
        *(marks[b] + digits(total[f"{b}_ms"]) if timed[b] else "" for b in baselines),
        *(f"{marks[b]}{total[f'over_{b}']:.0f}x" if timed[b] else "" for b in baselines),
        target(total),
    ]


def target(total: Json) -> str:
    """The targets of a network, each with whether it is met."""
    targets, met = total.get("targets", {}), []
    if "op_ms" in targets:
        met.append(f"op {targets['op_ms']} ms: {'met' if total['op_ms'] <= targets['op_ms'] else 'missed'}")
    if "over_reference" in targets and "over_reference" in total:
        reached = total["over_reference"] >= targets["over_reference"]
        met.append(f"{targets['over_reference']:.0f}x over naive: {'met' if reached else 'missed'}")
    return "; ".join(met)


def layer_row(row: Json, baselines: list[str]) -> list[str]:
    start = [row["layer"], shape_of(row), str(row["layers_of_this_shape"])]
    if not row["right"]:
        return [*start, "**wrong**", "", "", "", *("" for _ in baselines), str(row["error_bits"])]
    return [
        *start,
        milliseconds(row, "op"),
        f"{row['ratio_to_floor']:.1f}",
        digits(row["op_host_ms"]),
        milliseconds(row, "public"),
        *(milliseconds(row, b) for b in baselines),
        f"{row['error_bits']:.0e} ({row.get('reference_error_bits') or math.nan:.0e})",
    ]


def steps_table(record: Json, up: str) -> list[str]:
    rows = [
        [
            name,
            step["status"],
            "" if step["seconds"] is None else f"{step['seconds']:.0f}",
            (step["reason"] or step.get("last_line") or "").strip("= ").replace("|", "\\|"),
        ]
        for name, step in record["steps"].items()
    ]
    return [
        f"The steps of the run, on commit `{record['environment']['commit']}` ({link(GPU_STEPS, up)}):",
        "",
        *table(["step", "status", "s", "last line"], rows),
    ]


def profile_table(profile: Json, up: str) -> list[str]:
    rows = [
        [f"`{k['kernel'].split('(')[0]}`", k["grid"], k["block"], *(k["metrics"].get(name, "") for name in PROFILED)]
        for k in profile["kernels"]
    ]
    return [
        f"Nsight Compute, without clock control ({link(GPU_PROFILE, up)}):",
        "",
        *table(["kernel", "grid", "block", *PROFILED], rows),
    ]


def estimator_table(results: Json, up: str) -> list[str]:
    rows = [
        [row["layer"], shape_of(row), digits(row["permutation_ms"]), f"{100 * row['share_of_relevance']:.1f} %"]
        for row in results["null"]
    ]
    text = [
        f"A permutation of the null beside the relevance of the layer ({link(GPU_ESTIMATOR, up)}):",
        "",
        *table(["layer", "N x F x map", "ms a permutation", "of the relevance"], rows),
    ]
    for row in results["selection"]:
        text += [
            "",
            f"Greedy selection of {row['kept']} filters of {shape_of(row)} over {row['batches']} mini-batches: "
            f"{row['seconds']:.1f} s.",
        ]
    return text


def gpu_section(root: Path, up: str) -> list[str]:
    lines = [
        "`benchmarks/gpu/run.sh` builds, tests, sanitizes, times and profiles on a machine with a GPU. Its columns:",
        "",
        "- *op*: the kernels alone, by CUDA events, with a cold L2 cache; *host*: until the call of the op returns;",
        "- *public*: `hrel_ext.relevance` as the caller waits for it, checks included, like the baselines;",
        "- *naive*: `hrel_ext.reference`; *strong*: `benchmarks/baselines.py`; ~ is scaled up from a few filters;",
        "- *floors*: *op* over max(bytes read once / bandwidth, (N (N + 1) D F + 4/3 N^3 F) / float32 rate), measured.",
        "",
        "Medians ± half of the interquartile range.",
        "",
    ]
    results = read_gpu(root)
    if results is None:
        return [*lines, "**No GPU result has been measured yet.**"]
    lines += gpu_tables(results, up)
    tables = ((GPU_ESTIMATOR, estimator_table), (GPU_STEPS, steps_table), (GPU_PROFILE, profile_table))
    for path, render in tables:
        if found := read(root, path):
            lines += ["", *render(found, up)]
    if estimates := read_estimates(root):
        lines += ["", *estimates_tables(estimates, up)]
    return lines


def read(root: Path, path: str) -> Json | None:
    return json.loads((root / path).read_text()) if (root / path).exists() else None


def read_gpu(root: Path) -> Json | None:
    results = read(root, GPU_LAYERS)
    if results and (results["environment"]["device"] != "cuda" or results["small"]):
        raise ValueError(f"{GPU_LAYERS} must come from a whole run on a GPU, got one with --device cpu or --small")
    return results


def read_cpu(root: Path) -> Json:
    cpu = json.loads((root / CPU).read_text())
    if cpu["machine_info"]["hrel_ext"]["quick"]:
        raise ValueError(f"{CPU} must come from a whole run, got one with --quick")
    return cpu


def read_criteria(root: Path) -> dict[str, Json]:
    """The comparisons of criteria by their files, those that have been made."""
    found = {path: study for path in criteria_tables.STUDIES if (study := read(root, path))}
    for path, study in found.items():
        if study["settings"]["data"] == "digits":
            raise ValueError(f"{path} must come from a whole run, got one with --quick")
    return found


def render(root: Path) -> dict[Path, str]:
    """Return the files this program writes and what belongs in them."""
    pruning, cpu = [json.loads((root / path).read_text())["runs"] for path in PRUNING], read_cpu(root)
    scoring = [*gpu_summary(root, ""), *cpu_tables.speedup_table(cpu, link(CPU, ""))]
    readme = between_marks(root / "README.md", [*pruning_table(pruning, ""), "", *scoring])
    up, plots = "../", Path(PLOT_FOLDER).relative_to("docs").as_posix() + "/"  # from docs/
    studies = {link(path, up): study for path, study in read_criteria(root).items()}
    page = [
        "# Results",
        "",
        "Written by `python benchmarks/report.py` from the JSON named at each table; no number here is typed by hand.",
        "",
        "## Pruning",
        *pruning_table(pruning, up),
        "",
        *cycles_table(pruning),
        "",
        *(["## Criteria", *criteria_tables.section(studies, plots), ""] if studies else []),
        "## Scoring a layer on a CPU",
        *cpu_tables.section(cpu, link(CPU, up), plots),
        "",
        "## Scoring a layer on a GPU",
        *gpu_section(root, up),
    ]
    home = between_marks(root / "docs/index.md", pruning_table(pruning, up))
    return {**readme, **home, root / "docs/results.md": "\n".join(page) + "\n"}


def between_marks(path: Path, lines: list[str]) -> dict[Path, str]:
    head, rest = path.read_text().split(BEGIN)
    return {path: "\n".join([head + BEGIN, *lines, END]) + rest.split(END)[1]}


def draw_plots() -> None:
    try:
        import plots
    except ImportError as error:  # the pages do without
        print(f"{PLOT_FOLDER} was left as it is: {error}; pip install '.[report]'")
        return
    plots.draw(read_cpu(ROOT), ROOT / PLOT_FOLDER)
    if studies := list(read_criteria(ROOT).values()):
        plots.draw_criteria(studies, ROOT / PLOT_FOLDER)


def print_targets() -> None:
    for t in evaluate(read_cpu(ROOT)):
        limit, reached = f"{'>=' if t.at_least else '<='} {t.limit:g}{t.unit}", f"{t.reached:.3g}{t.unit}"
        floor = "" if t.at_floor is None else f"at the floor {t.at_floor:.3g}{t.unit}"
        print(f"{t.name:<62}{limit:>14}{reached:>16}  {t.verdict:<16}{floor:<20}{t.where}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a file is out of date")
    check = parser.parse_args().check
    for path, text in render(ROOT).items():
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path.relative_to(ROOT)} is not what the JSON renders to: run python benchmarks/report.py")
    if not check:
        draw_plots()
        print_targets()


if __name__ == "__main__":
    main()
