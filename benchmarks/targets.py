"""What the CPU backend is meant to reach, and whether a run of the benchmarks did; the only place with these limits."""
# SPDX-License-Identifier: MIT

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
MIB = 2**20
OVER_REFERENCE = {  # x, of a layer or of all convolutions of a network, N = 128
    "rows": 32,
    "vgg16 conv11-13": 32,
    "vgg16 conv8-10": 32,
    "vgg16 conv5-7": 28,
    "vgg16 conv3-4": 20,
    "vgg16 conv1-2": 16,
}
NETWORKS = {"vgg16": 25, "resnet56": 20}
OVER_PUBLISHED = {"lenet5 conv2": 60}  # F = 50, 8 x 8, N = 100
OVER_STRONG = 5  # in every row
ENTROPY_ERROR_BITS = 2e-5  # in every row
MEMORY_PER_THREAD = 8 * MIB
MEMORY_GROWTH = 1 * MIB  # between the fewest and the most filters: the precision of the measurement
OVER_CONTIGUOUS = 1.3
PERMUTATION = 0.1  # of the relevance, N = 128
SELECTION_S = 300  # 128 of 512 filters, N = 128, four mini-batches


@dataclass(frozen=True)
class Target:
    """One limit and what was reached; ``at_least`` says on which side it holds."""

    name: str
    reached: float
    limit: float
    unit: str
    at_least: bool
    where: str = ""  # the row that decides, for a target of every row
    at_floor: float | None = None  # what it would be if each step took its floor (bench_stages.py) on all threads

    @property
    def holds(self) -> bool:
        return self.reached >= self.limit if self.at_least else self.reached <= self.limit

    @property
    def verdict(self) -> str:
        return "holds" if self.holds else "does not hold"


def rows(results: Json, group: str) -> list[Json]:
    """The rows of one group of the pytest-benchmark JSON."""
    return [b["extra_info"] for b in results["benchmarks"] if b["group"] == group and b["extra_info"]]


def ratio(row: Json, other: str, ours: str = "ours") -> float:
    return row[other]["median_ms"] / row[ours]["median_ms"]


def network_ms(layers: list[Json], network: str, name: str) -> float:
    """Time of all convolutions of a network, every layer as often as it occurs."""
    return sum(r["layers_of_this_shape"] * r[name]["median_ms"] for r in layers if r["network"] == network)


def evaluate(results: Json) -> list[Target]:
    """Every target that the run can decide, in the order of the tables."""
    return [
        *_relevance(_with_floors(results)),
        *_width(rows(results, "width")),
        *_scale(results),
        *_null(results),
        *_selection(results),
    ]


def _with_floors(results: Json) -> list[Json]:
    """The layers with a contestant "floor" that takes the floor of every step, where the steps were timed."""
    floor_ms = {row["layer"]: sum(row["floor_ms"].values()) for row in rows(results, "stages")}
    return [
        row | {"floor": {"median_ms": floor_ms[row["layer"]] / row["threads"]}} if row["layer"] in floor_ms else row
        for row in rows(results, "relevance")
    ]


def _relevance(layers: list[Json]) -> Iterator[Target]:
    by_name = {row["layer"]: row for row in layers}

    def of_layer(what: str, row: Json, other: str, limit: float, where: str = "") -> Target:
        at_floor = ratio(row, other, "floor") if "floor" in row else None
        return Target(what, ratio(row, other), limit, "x", True, where, at_floor)

    for name, limit in OVER_REFERENCE.items():
        yield of_layer(f"{name} over the reference", by_name[name], "reference", limit)
    for name, limit in NETWORKS.items():
        own = [row for row in layers if row["network"] == name]
        count, theirs = sum(row["layers_of_this_shape"] for row in own), network_ms(own, name, "reference")
        at_floor = theirs / network_ms(own, name, "floor") if all("floor" in row for row in own) else None
        what, reached = f"{name}, its {count} convolutions, over the reference", theirs / network_ms(own, name, "ours")
        yield Target(what, reached, limit, "x", True, at_floor=at_floor)
    for name, limit in OVER_PUBLISHED.items():
        yield of_layer(f"{name} over the published loop", by_name[name], "published", limit)
    worst = min(layers, key=lambda row: ratio(row, "strong"))
    yield of_layer("every layer over the strong form", worst, "strong", OVER_STRONG, worst["layer"])
    worst = max(layers, key=lambda row: row["entropy_error_bits"])
    error = worst["entropy_error_bits"]
    yield Target("error of an entropy, every layer", error, ENTROPY_ERROR_BITS, " bits", False, worst["layer"])


def _width(layers: list[Json]) -> Iterator[Target]:
    for name, ours in (("of the layer", "ours"), ("per filter", "per_filter")):
        worst = max(layers, key=lambda row: row[ours]["median_ms"] / row["relevance"]["median_ms"])
        reached = worst[ours]["median_ms"] / worst["relevance"]["median_ms"]
        yield Target(f"width {name}, over the relevance of the layer", reached, 1, "x", False, worst["layer"])


def _scale(results: Json) -> Iterator[Target]:
    memory = rows(results, "memory")
    for threads in sorted({row["threads"] for row in memory}):
        extra = {row["filters"]: row["extra_bytes"] for row in memory if row["threads"] == threads}
        text = f"extra memory, {threads} thread{'s' if threads > 1 else ''}"
        yield Target(f"{text}, a thread", max(extra.values()) / threads / MIB, MEMORY_PER_THREAD / MIB, " MiB", False)
        growth = (extra[max(extra)] - extra[min(extra)]) / MIB
        name = f"{text}, growth from {min(extra)} to {max(extra)} filters"
        yield Target(name, growth, MEMORY_GROWTH / MIB, " MiB", False)
    layouts = rows(results, "layout")
    worst = min(layouts, key=lambda row: ratio(row, "contiguous"))
    reached = 1 / ratio(worst, "contiguous")
    yield Target("channels_last over contiguous, every layer", reached, OVER_CONTIGUOUS, "x", False, worst["layer"])


def _null(results: Json) -> Iterator[Target]:
    layers = [row for row in rows(results, "null") if row["shape"][0] == 128]
    if layers:
        worst = max(layers, key=lambda row: row["permutation_ms"] / row["ours"]["median_ms"])
        reached = worst["permutation_ms"] / worst["ours"]["median_ms"]
        name = "a permutation of the null over the relevance, N = 128, every layer"
        yield Target(name, reached, PERMUTATION, "x", False, worst["layer"])


def _selection(results: Json) -> Iterator[Target]:
    for row in rows(results, "selection"):
        name = f"greedy selection, {row['kept']} of {row['shape'][1]} filters, {row['batches']} mini-batches"
        yield Target(name, row["ours"]["median_ms"] / 1e3, SELECTION_S, " s", False)
