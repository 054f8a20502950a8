"""Estimates without a GPU: instructions of the CUDA kernels counted in their machine code, and times implied by them.

NOTHING HERE IS MEASURED. Of a matrix of N = 128 samples in ten classes, what a warp executes is counted loop by loop,
times the trips of the loop, the longest float32 way through each. In cycles of a multiprocessor's schedulers, each of
which issues one instruction a cycle and has one warp of every block:

    issue  instructions of a warp, the mean over the warps of a block
    pipe   the busiest of issue, float, integer, special, tensor and memory pipe
    alone  the slowest way through a block with no other one beside it, by what the compiler tells the schedulers

A round of r resident blocks takes r pipe by throughput, max(r pipe, alone) with perfect overlap, r alone with none.
Time = rounds, or the bytes over the bandwidth where that is longer, + launches. Where a loop is not found the compiler
has changed the code in a way that this file does not know, and it fails.
"""
# SPDX-License-Identifier: MIT

import argparse
import dataclasses
import math
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_layers
from cubins import ROOT, Cubin, Instance, build_flags, compile_cubins, nvcc_version
from protocol import commit, write_json
from sass import EXIT, LATENCY, PIPES, Graph, Instruction, Loop, Work, machine_code, total, work

from hrel_ext.testing import RESNET50, VGG16, Layer

OUT = ROOT / "results/gpu/estimates.json"
NETWORKS = {"vgg16": VGG16, "resnet50": RESNET50}
ARCHITECTURE, NUM_SAMPLES, NUM_CLASSES = "90", 128, 10
TILE, BAND, WARPS = 16, 8, 4  # rows of a tile, columns of a panel, warps of a block

# The data sheet of the H100 SXM, and what a launch is assumed to add.
H100 = {
    "multiprocessors": 132,
    "clock_hz": 1.755e9,
    "bandwidth_bytes_per_s": 3.35e12,
    "fma_flops_per_s": 67e12,
    "launch_us": 2.0,
}
NEAR_LOAD = 40  # cycles, of what lies in the cache of the multiprocessor
# Maps that are not read four float32 values at a time take another way.
UNALIGNED = re.compile(r"LDG\.E(\.U16)? R\d+, desc")


def constant(name: str, header: str) -> int:
    """Return a constant of the kernels, read from its header, so that it is stated once."""
    found = re.search(rf"\b{name} = (?:Index{{)?(\d+)(?:}} << (\d+))?[,;]", (ROOT / "csrc/cuda" / header).read_text())
    if not found:
        raise LookupError(f"csrc/cuda/{header} should give {name} a number")
    return int(found[1]) << int(found[2] or 0)


class Kernel:
    """The loops of one kernel and the work of each, of one warp."""

    def __init__(self, instance: Instance, code: Sequence[Instruction]) -> None:
        self.instance, self.graph = instance, Graph(code)

    def find(self, name: str, kind: Callable[[Loop, Counter], bool]) -> Loop:
        """The one loop whose instructions, those of loops within it left out, are of a kind."""
        found = [loop for loop in self.graph.loops if kind(loop, own_counts(loop))]
        if len(found) != 1:
            raise LookupError(
                f"{self.instance} must have one loop of the kind '{name}', found {len(found)}: the kernel or the "
                "compiler has changed"
            )
        return found[0]

    def once(self, loop: Loop, *, repeated: bool = True) -> Work:
        return work(loop.once(loop.inner), ARCHITECTURE, repeated=repeated)

    def before(self, loop: Loop) -> Work:
        path = self.graph.path(0, [loop.header], skip=self._in_loops())
        return work(path, ARCHITECTURE)

    def after(self, loop: Loop) -> Work:
        start = min(loop.exits, key=lambda number: self.graph.blocks[number].first)
        path = self.graph.path(start, self.graph.blocks_with(EXIT), skip=self._in_loops())
        return work(path, ARCHITECTURE)

    def _in_loops(self) -> set[int]:
        return {number for loop in self.graph.loops for number in loop.body}


def own_counts(loop: Loop) -> Counter:
    inner = {number for other in loop.inner for number in other.body}
    return Counter(x.opcode for number in loop.body - inner for x in loop.graph.instructions(number))


class DistancesKernel(Kernel):
    """Products of one part of the positions."""

    def __init__(self, instance: Instance, code: Sequence[Instruction]) -> None:
        super().__init__(instance, code)
        self.loop = self.find("products", lambda loop, own: own["HMMA"] == 54)
        path = self.graph.path(self.loop.header, self.loop.latches, self._not_taken(self.loop))
        # What a stage waits for was fetched by a stage before, and is in the cache of the multiprocessor.
        self.stage = work(
            path, ARCHITECTURE, repeated=True, latency=defaultdict(lambda: 25, {**LATENCY, "LDG": NEAR_LOAD})
        )

    def _not_taken(self, loop: Loop) -> set[int]:
        return (set(self.graph.order) - loop.body) | self.graph.blocks_with(UNALIGNED)

    def of_positions(self, positions: float) -> Work:
        return self.stage * math.ceil(positions / 8)

    def of_part(self, positions: float) -> Work:
        return self.before(self.loop) + self.of_positions(positions) + self.after(self.loop)


class BandKernel(Kernel):
    """The chain of one filter behind its distances, and distances of small maps."""

    def __init__(self, instance: Instance, code: Sequence[Instruction]) -> None:
        super().__init__(instance, code)
        self.column_1 = self.find("a row of tiles times V", lambda loop, own: own["HMMA"] == 12 and not loop.inner)
        self.column_2 = self.find("two rows of tiles times V", lambda loop, own: own["HMMA"] == 24 and not loop.inner)
        self.rest = self.find("the rest of the update", lambda loop, own: own["HMMA"] >= 12 and len(loop.inner) == 1)
        self.panel = self.column_1.outer
        self.passes = self.panel.outer
        self.row = self.find(
            "a row of the sweep", lambda loop, own: own["FFMA"] > 100 and own["MUFU"] and not own["BAR"]
        )
        self.class_step = self.find(
            "a step of the classes", lambda loop, own: own["BAR"] == 2 and own["FFMA"] > 60 and not own["HMMA"]
        )
        self.gaussian = self.find(
            "the Gaussian of a tile", lambda loop, own: own["MUFU"] == 8 == own["STS"] == own["LDS"]
        )
        self.of_slots = self.find("the Gaussian of parts", lambda loop, own: own["MUFU"] == 8 and own["LDG"] > 0)
        self.parts = max(self.of_slots.inner, key=lambda loop: own_counts(loop)["LDG"])  # four at once
        self.positions = self.find("two positions", lambda loop, own: own["FFMA"] == 72 and own["FADD"] == 216)

    def of_differences(self, positions: int) -> Work:
        stage = self.once(self.positions.outer)
        return stage * math.ceil(positions / constant("kStage", "gram.cuh")) + self.once(self.positions) * math.ceil(
            positions / 2
        )

    def of_gaussian(self, splits: int = 0) -> Work:
        tiles = num_tiles(NUM_SAMPLES) * (num_tiles(NUM_SAMPLES) + 1) // 2
        each = (
            self.once(self.of_slots) + self.once(self.parts) * math.ceil(splits / 4)
            if splits
            else self.once(self.gaussian)
        )
        return each * math.ceil(tiles / WARPS)

    def of_reduction(self) -> Work:
        path = self._step_without_loops()
        first_barrier = next(i for i, x in enumerate(path) if x.opcode == "BAR")
        factor, behind = work(path[:first_barrier], ARCHITECTURE), work(path[first_barrier:], ARCHITECTURE)
        two, one, rest = (
            self.once(loop) * share for loop, share in ((self.column_2, 0.5), (self.column_1, 0.5), (self.rest, 1))
        )
        sum_ = Work()
        for first in range(0, NUM_SAMPLES, BAND):
            tiles = num_tiles(NUM_SAMPLES) - first // TILE
            rows = [len(range(warp, tiles, WARPS)) for warp in range(WARPS)]
            columns = total({0: Work(), 1: one, 2: two}[r] * tiles for r in rows) * (1 / WARPS)
            slowest = (two if max(rows) == 2 else one).alone * tiles
            behind_panel = num_tiles(NUM_SAMPLES) - (first + BAND) // TILE
            update = rest * (behind_panel * (behind_panel + 1) / 2 / WARPS)
            step = factor * (1 / WARPS) + behind + columns + update
            alone = max(factor.alone, rest.alone * math.ceil(behind_panel * (behind_panel + 1) / 2 / (WARPS - 1)))
            sum_ += dataclasses.replace(step, alone=alone + behind.alone + slowest)
        return sum_

    def _step_without_loops(self) -> list[Instruction]:
        """The longest way through a step, without what its unrolled loops leave over: those count as whole."""
        inner = {number for loop in self.panel.inner for number in loop.body}
        counts = {n: Counter(x.opcode for x in self.graph.instructions(n)) for n in self.panel.body - inner}
        left_over = {n for n, count in counts.items() if count["HMMA"] and count["LDS"] >= 1.5 * count["HMMA"]}
        avoid = (set(self.graph.order) - self.panel.body) | left_over
        return self.graph.path(self.panel.header, self.panel.latches, avoid, inner)

    def of_classes(self) -> Work:
        """Classes of up to 16 samples: the shortest way, without the columns behind."""
        loop = self.class_step
        path = self.graph.path(loop.header, loop.latches, set(self.graph.order) - loop.body, longest=False)
        return work(path, ARCHITECTURE, repeated=True) * math.ceil(NUM_SAMPLES / NUM_CLASSES)

    def of_spectrum(self) -> Work:
        rows = (NUM_SAMPLES - BAND) // 2 + BAND
        sweep = self.once(self.row) * rows + self.once(self.row.outer)
        return Work(sweep.issue / WARPS, sweep.pipe / WARPS, sweep.alone)  # by one warp

    def stages(self) -> dict[str, Work]:
        """The work behind the distances: what stands in no loop counts as `other`."""
        return {
            "Gaussian": self.of_gaussian(),
            "band reduction": self.of_reduction(),
            "class blocks": self.of_classes(),
            "traces": self.of_spectrum(),
            "other": self.before(self.passes) + self.once(self.passes, repeated=False) + self.after(self.passes),
        }

    def of_matrix(self, splits: int = 0) -> Work:
        stages = self.stages()
        return total(stages.values()) + (self.of_gaussian(splits) + stages["Gaussian"] * -1 if splits else Work())


def num_tiles(n: int) -> int:
    return -(-n // TILE)


def num_splits(positions: int) -> int:
    return min(positions // constant("kPositionsPerSplit", "plan.h") + 1, constant("kMostSplits", "plan.h"))


@dataclass
class Times:
    """In us: by the throughput of the busiest pipe alone, with perfect overlap of resident blocks, with none."""

    throughput: float = 0
    overlap: float = 0
    no_overlap: float = 0

    def __add__(self, other: "Times") -> "Times":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Times(*(a + b for a, b in pairs))

    def at_least(self, us: float) -> "Times":
        return Times(*(max(time, us) for time in dataclasses.astuple(self)))


def rounds(blocks: int, one: Work, resident: int) -> Times:
    """The times of blocks of equal work, up to ``resident`` at once on each multiprocessor."""
    multiprocessors, us = H100["multiprocessors"], 1e6 / H100["clock_hz"]
    full, rest = divmod(blocks, multiprocessors * resident)
    times = Times()
    for count, at_once in ((full, resident), (1 if rest else 0, math.ceil(rest / multiprocessors))):
        busy = at_once * one.pipe
        times += Times(count * us * busy, count * us * max(busy, one.alone), count * us * at_once * one.alone)
    return times


def predict(
    layer: Layer, small: BandKernel, large: BandKernel, products: DistancesKernel, of_large: Work
) -> dict[str, Any]:
    """The times of the op relevance on one layer: the launches of csrc/cuda/launches.cuh and plan.h."""
    positions, filters = math.prod(layer.map_shape), layer.num_filters
    splits, launches = num_splits(positions), 1
    us_per_byte = 1e6 / H100["bandwidth_bytes_per_s"]
    map_us = 4 * layer.num_samples * positions * us_per_byte  # of one filter, read once
    if splits > 1:
        slot_us = splits * num_tiles(NUM_SAMPLES) * (num_tiles(NUM_SAMPLES) + 1) // 2 * TILE**2 * 4 * us_per_byte
        part = products.of_part(positions / splits)
        times = rounds(filters * splits, part, products.instance.blocks).at_least(filters * (map_us + slot_us))
        times += rounds(filters, small.of_matrix(splits), small.instance.blocks).at_least(filters * slot_us)
        launches = 2
    elif positions >= constant("kLeastPositions", "plan.h"):
        own = of_large + products.of_positions(positions)
        times = rounds(filters, own, large.instance.blocks).at_least(filters * map_us)
    else:
        own = small.of_matrix() + small.of_differences(positions)
        times = rounds(filters, own, small.instance.blocks).at_least(filters * map_us)
    launch_us = (launches + 1) * H100["launch_us"]  # the float64 route always follows
    shape = (layer.num_samples, filters, *layer.map_shape)
    return {
        "layer": layer.name,
        "shape": shape,
        "layers_of_this_shape": layer.count,
        "splits": splits,
        **{f"{name}_us": time + launch_us for name, time in dataclasses.asdict(times).items()},
        "floor_us": 1e3 * bench_layers.floor(shape, H100)["floor_ms"],
    }


def rounded(value: Any) -> Any:
    """Whole cycles and tenths of a us: more digits would pretend to something."""
    if isinstance(value, Work):
        return {name: round(cycles) for name, cycles in dataclasses.asdict(value).items()}
    if isinstance(value, float):
        return round(value, 1)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def estimate(cubins: Sequence[Cubin]) -> dict[str, Any]:
    cubin = next(c for c in cubins if (c.source, c.architecture) == ("entropies", ARCHITECTURE))
    code = {str(instance): (instance, found) for instance, found in machine_code(cubin.path).items()}
    small = BandKernel(*code["band_entropies_kernel<16, 8, 8, 16, 1, 4, 0>"])
    large = BandKernel(*code["band_entropies_kernel<16, 8, 8, 16, 1, 3, 1>"])
    products = DistancesKernel(*code["distances_kernel<16, 8, 8, 16, 1, 3, 1>"])
    stages, of_large = small.stages(), large.of_matrix()
    networks = []
    for name, layers in NETWORKS.items():
        rows = [predict(layer, small, large, products, of_large) for layer in layers]
        keys = ("throughput_us", "overlap_us", "no_overlap_us", "floor_us")
        sums = {key: sum(row["layers_of_this_shape"] * row[key] for row in rows) for key in keys}
        networks.append({"network": name, "layers": sum(r["layers_of_this_shape"] for r in rows), **sums, "rows": rows})
    return {
        "measured": False,
        "environment": {
            "nvcc": nvcc_version(),
            "flags": build_flags(),
            "commit": commit(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
        "assumed": {"gpu": H100, "classes": NUM_CLASSES, "pipes": PIPES[ARCHITECTURE], "latency": dict(LATENCY)},
        "num_samples": NUM_SAMPLES,
        "stages": rounded(stages),
        "whole": rounded(total(stages.values())),
        "products_per_position": rounded(dataclasses.asdict(products.stage * (1 / 8))),
        "differences_per_position": rounded(dataclasses.asdict(small.of_differences(16) * (1 / 16))),
        "networks": rounded(networks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="JSON to write")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        record = estimate(compile_cubins(Path(folder)))
    write_json(out, record)
    for name, stage in {**record["stages"], "whole": record["whole"]}.items():
        print(f"{name}: issue {stage['issue']}, pipe {stage['pipe']}, alone {stage['alone']} cycles")
    print(f"a position by products: {record['products_per_position']}")
    for network in record["networks"]:
        ms = [network[f"{name}_us"] / 1e3 for name in ("throughput", "overlap", "no_overlap", "floor")]
        print("{}: {:.2f}, {:.2f} .. {:.2f} ms, floor {:.2f} ms; estimates".format(network["network"], *ms))


if __name__ == "__main__":
    main()
