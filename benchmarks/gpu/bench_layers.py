"""Times the relevance of every convolution of VGG-16, ResNet-50 and ResNet-56 against PyTorch, naive and strong.

The most important layers come first and the JSON is rewritten after each, so that a run that is stopped is of use. Per
layer: the op alone on prepared operands (device time), the public function (as the caller waits for it), both baselines
in the same way as the public function, all checked against float64 first, and the floor

    max(bytes / bandwidth, (N (N + 1) D F + 4/3 N^3 F) / FMA rate)

of reading the activations once, forming the Gram matrices and reducing them to tridiagonal form, with the bandwidth and
the rate measured in the same run. Times in ms, rates in bytes or operations per second.
"""
# SPDX-License-Identifier: MIT

import argparse
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import baselines
from protocol import environment, write_json

import hrel_ext
from hrel_ext import reference
from hrel_ext.testing import RESNET50, RESNET56, VGG16, Layer, oracle, relevance_operands, tolerance_bits

ALPHA, NUM_CLASSES, SEED = 1.01, 10, 1787
NETWORKS = {"vgg16": VGG16, "resnet50": RESNET50, "resnet56": RESNET56}  # in the order of importance
OTHER_BATCHES = {"vgg16": (100, 64, 256)}  # besides the 128 samples of the tables in hrel_ext.testing
BASELINES = ("strong", "strong_cupy", "reference")  # strong_cupy: on a GPU, where CuPy is installed
TARGETS = {"vgg16": {"op_ms": 1.6, "over_reference": 40.0}, "resnet50": {"op_ms": 12.0}}  # at N = 128 on an H100
FEW_FILTERS = 32  # a baseline is tried on that many first; one that would take too long on all is scaled up from them
SPIN_CYCLES = 2_000_000  # about a ms, in which the host enqueues a whole call, so that events see the device alone


@dataclass(frozen=True)
class Effort:
    """How long and how often a contestant is timed."""

    ours_s: float
    baseline_s: float
    most_rounds: int
    copied_bytes: int  # of the copy that measures the bandwidth
    matrix_size: int  # of the product that measures the rates


FULL = Effort(0.4, 2.5, 50, 2**30, 8192)
ON_CPU = replace(FULL, copied_bytes=2**28, matrix_size=2048)
SMALL = Effort(0.02, 0.05, 5, 2**22, 256)


@dataclass(frozen=True)
class Timing:
    """Of one call. ``estimated_from_filters``: timed on so many filters only and scaled to all, else None."""

    median_ms: float
    interquartile_ms: float
    rounds: int
    estimated_from_filters: int | None = None


class Clock:
    """Times single calls: by CUDA events with a cold L2 cache on a GPU, by the clock of the process on a CPU."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        if self.on_gpu:
            l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
            self._flush = torch.empty(4 * l2_bytes, dtype=torch.uint8, device=device)  # well beyond the cache
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def once(self, call: Callable[[], object], *, device_only: bool = False) -> float:
        """Return the ms of one call, with the wait for the host, or of the device alone."""
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        if device_only:
            torch.cuda._sleep(SPIN_CYCLES)
        self._flush.zero_()
        if not device_only:
            torch.cuda.synchronize()
        self._start.record()
        call()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end)

    def times(
        self, call: Callable[[], object], limit_s: float, most_rounds: int, *, device_only: bool = False
    ) -> Timing:
        """Time a call that has been warmed up, again and again until a limit is reached, once at least."""
        end, taken = time.perf_counter() + limit_s, []
        while not taken or (len(taken) < most_rounds and time.perf_counter() < end):
            taken.append(self.once(call, device_only=device_only))
        lower, median, upper = statistics.quantiles(taken * 2 if len(taken) == 1 else taken, n=4, method="inclusive")
        return Timing(median, upper - lower, len(taken))

    def host(self, call: Callable[[], object], rounds: int) -> float:
        """Return the median ms until a call returns, with whatever it has enqueued still running."""
        taken = []
        for _ in range(rounds):
            if self.on_gpu:
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - start))
        return statistics.median(taken)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def measure_ceilings(clock: Clock, device: str, effort: Effort) -> dict[str, float]:
    """Measure what the device can do at most: bytes read plus written by a copy, operations by a large product."""
    source = torch.randn(effort.copied_bytes // 4, device=device)
    target = torch.empty_like(source)
    size = effort.matrix_size
    left, right = torch.randn(2, size, size, device=device)

    def seconds(call: Callable[[], object]) -> float:
        call()
        return 1e-3 * clock.times(call, effort.ours_s, effort.most_rounds, device_only=True).median_ms

    ceilings = {"bandwidth_bytes_per_s": 2 * effort.copied_bytes / seconds(lambda: target.copy_(source))}
    for name, precision in (("fma_flops_per_s", "highest"), ("tf32_flops_per_s", "high")):
        with matmul_precision(precision):
            ceilings[name] = 2 * size**3 / seconds(lambda: torch.mm(left, right))
    return ceilings


def floor(shape: tuple[int, ...], ceilings: dict[str, float]) -> dict[str, float]:
    """Return the bytes and operations that no version can avoid, and the ms they take at the ceilings."""
    num_samples, num_filters, *map_shape = shape
    num_features = math.prod(map_shape)
    num_bytes = 4 * num_samples * num_filters * num_features
    flops = num_filters * (num_samples * (num_samples + 1) * num_features + 4 / 3 * num_samples**3)
    bytes_ms = 1e3 * num_bytes / ceilings["bandwidth_bytes_per_s"]
    flops_ms = 1e3 * flops / ceilings["fma_flops_per_s"]
    return {
        "bytes": num_bytes,
        "flops": flops,
        "floor_bytes_ms": bytes_ms,
        "floor_flops_ms": flops_ms,
        "floor_ms": max(bytes_ms, flops_ms),
    }


def make(layer: Layer, device: str) -> tuple[Tensor, Tensor, float]:
    """Rectified normal maps (N, F, ...), labels (N,), and a width near the mean distance."""
    rng = torch.Generator(device).manual_seed(SEED)
    acts = torch.randn(layer.num_samples, layer.num_filters, *layer.map_shape, generator=rng, device=device).relu_()
    labels = torch.randint(NUM_CLASSES, (layer.num_samples,), generator=rng, device=device)
    return acts, labels, math.prod(layer.map_shape) ** 0.5


def time_baseline(clock: Clock, call: Callable[[Tensor], object], acts: Tensor, effort: Effort) -> Timing:
    """Time a baseline on all filters, or on the first few where all of them would take longer than its share."""
    num_filters = acts.shape[1]
    few = acts[:, :FEW_FILTERS]
    call(few)  # libraries are loaded and handles created by a first call
    scale = num_filters / few.shape[1]
    expected_s = 1e-3 * scale * clock.once(lambda: call(few))
    if expected_s > effort.baseline_s:
        timing = clock.times(lambda: call(few), effort.baseline_s / 4, effort.most_rounds)
        return Timing(scale * timing.median_ms, scale * timing.interquartile_ms, timing.rounds, few.shape[1])
    if expected_s < effort.baseline_s / 4:  # a call that takes seconds needs no more warming up
        call(acts)
    return clock.times(lambda: call(acts), effort.baseline_s, effort.most_rounds)


def measure(
    clock: Clock, network: str, layer: Layer, device: str, ceilings: dict[str, float], effort: Effort
) -> dict[str, Any]:
    """Check every contestant on one layer, then time it."""
    acts, labels, sigma = make(layer, device)
    shape = tuple(acts.shape)
    checked = sorted({0, acts.shape[1] // 2, acts.shape[1] - 1})
    exact = oracle(acts[:, checked], labels, sigma, ALPHA).relevance  # (filters checked,)

    def ours() -> Tensor:
        return hrel_ext.relevance(acts, labels, sigma=sigma, alpha=ALPHA)

    contestants: dict[str, Callable[[Tensor], Tensor]] = {
        "strong": lambda maps: baselines.relevance(maps, labels, sigma=sigma, alpha=ALPHA),
        "reference": lambda maps: reference.relevance(maps, labels, sigma=sigma, alpha=ALPHA),
    }
    cupy_eigvalsh = baselines.cupy_eigvalsh() if clock.on_gpu else None
    if cupy_eigvalsh:
        contestants["strong_cupy"] = lambda maps: baselines.relevance(
            maps, labels, sigma=sigma, alpha=ALPHA, eigvalsh=cupy_eigvalsh
        )

    def error_bits(result: Tensor) -> float | None:
        error = (result.cpu().double() - exact).abs().max().item()
        return error if math.isfinite(error) else None

    row: dict[str, Any] = {
        "network": network,
        "layer": layer.name,
        "shape": shape,
        "layers_of_this_shape": layer.count,
        "tolerance_bits": 2 * tolerance_bits(acts.dtype, len(acts), ALPHA),
        **floor(shape, ceilings),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        row["error_bits"] = error_bits(ours()[checked])  # of a call on all filters
        row["warnings"] = sorted({str(warning.message) for warning in caught})
    row["right"] = row["error_bits"] is not None and row["error_bits"] <= row["tolerance_bits"]
    if not row["right"]:
        return row  # a wrong result has no time
    operands = relevance_operands(acts, labels, sigma, ALPHA)

    def op() -> object:
        return torch.ops.hrel_ext.relevance(*operands)

    op()
    row["op"] = asdict(clock.times(op, effort.ours_s, effort.most_rounds, device_only=True))
    row["op_host_ms"] = clock.host(op, min(20, effort.most_rounds))
    row["public"] = asdict(clock.times(ours, effort.ours_s, effort.most_rounds))
    row["ratio_to_floor"] = row["op"]["median_ms"] / row["floor_ms"]
    for name, contestant in contestants.items():
        try:
            row[f"{name}_error_bits"] = error_bits(contestant(acts[:, checked]))
            row[name] = asdict(time_baseline(clock, contestant, acts, effort))
            row[f"over_{name}"] = row[name]["median_ms"] / row["public"]["median_ms"]
        except Exception as error:  # what a baseline cannot do must not end the run: out of memory, a missing library
            row[f"{name}_absent"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return row


def plan(small: bool) -> list[tuple[str, Layer]]:
    """Return the layers in the order of importance; a small run keeps their number and little else."""
    layers = [(network, layer) for network, table in NETWORKS.items() for layer in table]
    for network, batches in OTHER_BATCHES.items():
        layers += [(network, replace(layer, num_samples=n)) for n in batches for layer in NETWORKS[network]]
    if small:
        layers = [(network, shrink(layer)) for network, layer in layers]
    return layers


def shrink(layer: Layer) -> Layer:
    map_shape = tuple(min(extent, 4) for extent in layer.map_shape)
    return replace(
        layer, num_samples=layer.num_samples // 4, num_filters=min(layer.num_filters, 8), map_shape=map_shape
    )


def totals(rows: list[dict[str, Any]], layers: list[tuple[str, Layer]]) -> list[dict[str, Any]]:
    """Add up the networks all of whose layers were timed at one batch size."""
    found = []
    for network, num_samples in dict.fromkeys((network, layer.num_samples) for network, layer in layers):
        wanted = [layer for name, layer in layers if (name, layer.num_samples) == (network, num_samples)]
        timed = [row for row in rows if (row["network"], row["shape"][0]) == (network, num_samples) and "op" in row]
        if len(timed) < len(wanted):
            continue
        total: dict[str, Any] = {
            "network": network,
            "num_samples": num_samples,
            "layers": sum(row["layers_of_this_shape"] for row in timed),
            "floor_ms": sum(row["layers_of_this_shape"] * row["floor_ms"] for row in timed),
        }
        for name in ("op", "public", *BASELINES):
            if all(name in row for row in timed):
                total[f"{name}_ms"] = sum(row["layers_of_this_shape"] * row[name]["median_ms"] for row in timed)
        for name in BASELINES:
            if f"{name}_ms" in total:
                total[f"{name}_estimated"] = any(row[name]["estimated_from_filters"] for row in timed)
                total[f"over_{name}"] = total[f"{name}_ms"] / total["public_ms"]
                total[f"op_over_{name}"] = total[f"{name}_ms"] / total["op_ms"]
        total["ratio_to_floor"] = total["op_ms"] / total["floor_ms"]
        if num_samples == VGG16[0].num_samples:
            total["targets"] = TARGETS.get(network, {})
        found.append(total)
    return found


def print_row(row: dict[str, Any]) -> None:
    shape = "x".join(map(str, row["shape"]))
    if not row["right"]:
        print(f"{row['layer']:<24}{shape:<20} WRONG: off by {row['error_bits']} bits", flush=True)
        return
    baselines_ms = "".join(
        f", {name} {row[name]['median_ms']:.1f} ms{'~' if row[name]['estimated_from_filters'] else ''}"
        for name in BASELINES
        if name in row
    )
    print(
        f"{row['layer']:<24}{shape:<20} op {row['op']['median_ms']:.3f} ms, {row['ratio_to_floor']:.1f} floors, "
        f"{row['error_bits']:.0e} bits; public {row['public']['median_ms']:.3f} ms{baselines_ms}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="S", help="start no layer after that")
    parser.add_argument("--small", action="store_true", help="few samples, filters and rounds, to try the script")
    parser.add_argument("--profile", nargs="+", metavar="LAYER", help="call the op once on each, and time nothing")
    arguments = parser.parse_args()
    layers = plan(arguments.small)
    end = time.perf_counter() + arguments.time_limit
    if arguments.profile:
        for layer in {layer.name: layer for _, layer in reversed(layers) if layer.name in arguments.profile}.values():
            acts, labels, sigma = make(layer, arguments.device)
            torch.ops.hrel_ext.relevance(*relevance_operands(acts, labels, sigma, ALPHA))
        return
    if arguments.out is None:
        parser.error("--out names the JSON to write")
    clock = Clock(arguments.device)
    effort = SMALL if arguments.small else FULL if arguments.device == "cuda" else ON_CPU
    short = replace(effort, baseline_s=effort.baseline_s / 3)
    results: dict[str, Any] = {
        "environment": environment(arguments.device),
        "small": arguments.small,
        "alpha": ALPHA,
        "classes": NUM_CLASSES,
        "dtype": "float32",
        "seed": SEED,
        "ceilings": measure_ceilings(clock, arguments.device, effort),
        "complete": False,
        "rows": [],
        "totals": [],
    }
    print("ceilings: " + ", ".join(f"{name} {value:.3g}" for name, value in results["ceilings"].items()), flush=True)
    for network, layer in layers:
        if time.perf_counter() > end:
            break
        if network != layers[0][0] or layer.num_samples != layers[0][1].num_samples:
            effort = short  # what comes first is measured best
        row = measure(clock, network, layer, arguments.device, results["ceilings"], effort)
        results["rows"].append(row)
        results["totals"] = totals(results["rows"], layers)
        results["complete"] = len(results["rows"]) == len(layers)
        write_json(arguments.out, results)
        print_row(row)
    for total in results["totals"]:
        over = "".join(f", {total[f'over_{name}']:.1f}x over {name}" for name in BASELINES if f"over_{name}" in total)
        print(
            f"{total['network']}, N = {total['num_samples']}, {total['layers']} layers: op {total['op_ms']:.2f} ms, "
            f"{total['ratio_to_floor']:.1f} floors; public {total['public_ms']:.2f} ms{over}"
        )
    if not results["complete"]:
        print(f"time limit: {len(results['rows'])} of {len(layers)} layers timed")
    if wrong := [row["layer"] for row in results["rows"] if not row["right"]]:
        sys.exit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
