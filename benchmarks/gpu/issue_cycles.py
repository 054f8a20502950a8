"""Estimates without a GPU: instructions of the CUDA kernels counted in their machine code, and times implied by them.

NOTHING HERE IS MEASURED. Instructions of the float32 path are counted loop by loop, times the trips of the loop. Of a
warp, in cycles of its scheduler (a quarter of a multiprocessor, which issues one instruction a cycle):

    issue  instructions                pipe  the busiest of issue, float, integer, special, tensor and memory pipe
    alone  the warp with no other one beside it, by the stalls and barriers that the compiler has put into the code

A round of r warps on each scheduler takes r pipe by throughput, max(r pipe, alone) with perfect overlap and r alone
with none. Time = rounds, or the bytes over the bandwidth where that is longer, + launches. Where a loop is not found
the compiler has changed the code in a way that this file does not know, and it fails.
"""
# SPDX-License-Identifier: MIT

import argparse
import dataclasses
import math
import re
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_layers
from cubins import ROOT, Cubin, Instance, Shape, build_flags, compile_cubins, nvcc_version
from protocol import write_json
from sass import (
    EXIT,
    LATENCY,
    LOAD,
    OPCODES,
    OTHER_PATH,
    PIPES,
    Graph,
    Instruction,
    Loop,
    Work,
    machine_code,
    total,
    work,
)

from hrel_ext.testing import RESNET50, RESNET56, VGG16, Layer

OUT = ROOT / "results/gpu-estimates.json"
NETWORKS = {"vgg16": VGG16, "resnet56": RESNET56, "resnet50": RESNET50}
NUM_CLASSES = 10

# The data sheet of the H100 SXM, and what a launch is assumed to add.
H100 = {
    "multiprocessors": 132,
    "clock_hz": 1.755e9,
    "bandwidth_bytes_per_s": 3.35e12,
    "fma_flops_per_s": 67e12,
    "launch_us": 2.0,
}


# --- the kernels ------------------------------------------------------------------------------------------------------


def constant(name: str, header: str) -> int:
    """Return a constant of the kernels, read from its header, so that it is stated once."""
    found = re.search(rf"\b{name} = (?:Index{{)?(\d+)(?:}} << (\d+))?[,;]", (ROOT / "csrc/cuda" / header).read_text())
    if not found:
        raise LookupError(f"csrc/cuda/{header} should give {name} a number")
    return int(found[1]) << int(found[2] or 0)


LEAST_POSITIONS = constant("kLeastPositions", "product.cuh")
DIFFERENCE_STAGE = constant("kStage", "gram.cuh")
POSITIONS_AT_ONCE = 2  # of differences
LARGEST_SIZE = 128  # of a matrix in registers
PRODUCT_STAGE = 16  # kPositions of ProductStage, for all shapes in registers


def only(loops: list[Loop], name: str, instance: Instance, expected: int = 1) -> list[Loop]:
    if len(loops) != expected:
        raise LookupError(
            f"{instance} must have {expected} loops of the kind '{name}', found {len(loops)}: the kernel or the "
            "compiler has changed"
        )
    return loops


class Kernel:
    """The loops of one kernel and the work of each, of one warp."""

    def __init__(self, instance: Instance, code: Sequence[Instruction], architecture: str) -> None:
        self.instance, self.architecture = instance, architecture
        self.graph = Graph(code)
        self.other_path = self.graph.blocks_with(OTHER_PATH)
        self.local_memory = sum(x.opcode in ("LDL", "STL") for x in code)
        self.innermost = [loop for loop in self.graph.loops if not loop.inner]
        self._distances()

    @property
    def shape(self) -> Shape:
        return self.instance.shape

    def find(self, name: str, kind: Callable[[Counter], bool], expected: int = 1) -> list[Loop]:
        return only([loop for loop in self.innermost if kind(loop.counts)], name, self.instance, expected)

    def work(self, instructions: Sequence[Instruction], *, repeated: bool = False) -> Work:
        return work(instructions, self.architecture, repeated=repeated)

    def loop(self, loop: Loop, without: Iterable[Loop] = ()) -> Work:
        return self.work(loop.once(without), repeated=True)

    def way_to_loop(self, start: int, loop: Loop, avoid: Iterable[int] = ()) -> Work:
        """The longest float32 way from a block to a loop, without it."""
        path = self.graph.path(start, [loop.header], set(avoid) | self.other_path)
        return self.work(path[: len(path) - len(self.graph.instructions(loop.header))])

    def way_to_end(self, loop: Loop, avoid: Iterable[int] = ()) -> Work:
        """The longest float32 way from behind a loop to the end of the kernel."""
        path = self.graph.path(self.exit_of(loop), self.graph.blocks_with(EXIT), set(avoid) | self.other_path)
        return self.work(path)

    def exit_of(self, loop: Loop) -> int:
        """The block that follows a loop; other ways out of it are of other paths."""
        exits = loop.exits - self.other_path
        if len(exits) != 1:
            raise LookupError(f"{self.instance} must leave a loop in one place, found {len(exits)}")
        return min(exits)

    def apart(self, loop: Loop, keep: Loop) -> set[int]:
        """The blocks that lead to a loop and that a way to another one passes by."""
        return self.graph.only_on_way_to(loop.header, keep.header)

    def _distances(self) -> None:
        (product,) = self.find("products", lambda c: c["HMMA"] > 0)
        (position,) = self.find(
            "positions of differences", lambda c: c["FADD"] == 3 * c["FFMA"] >= 48 and not c["HMMA"] and not c["SHFL"]
        )
        self.hmma = product.counts["HMMA"]
        self.product_loop, self.product = product, self.loop(product)
        self.difference_loop = position.outer
        self.difference, self.difference_stage = self.loop(position), self.loop(position.outer, [position])

    def of_products(self, positions: float) -> Work:
        return self.product * math.ceil(positions / PRODUCT_STAGE)

    def of_differences(self, positions: int) -> Work:
        pairs, stages = math.ceil(positions / POSITIONS_AT_ONCE), math.ceil(positions / DIFFERENCE_STAGE)
        return self.difference * pairs + self.difference_stage * stages


class DistancesKernel(Kernel):
    """distances_kernel: products of one part of the positions."""

    def __init__(self, instance: Instance, code: Sequence[Instruction], architecture: str) -> None:
        super().__init__(instance, code, architecture)
        self.before = self.way_to_loop(0, self.product_loop)
        self.after = self.way_to_end(self.product_loop, self.difference_loop.body)

    def of_part(self, positions: float) -> Work:
        return self.before + self.of_products(positions) + self.after


class EntropiesKernel(Kernel):
    """entropies_kernel: the whole chain of one filter."""

    def __init__(self, instance: Instance, code: Sequence[Instruction], architecture: str) -> None:
        super().__init__(instance, code, architecture)
        shape = self.shape
        (self.gaussian,) = self.find(
            "centred Gaussian", lambda c: c["MUFU"] == c["LDS"] == c["STS"] == 4 and not c["LDG"]
        )
        gaussian = self.gaussian.outer
        self.gaussian_element = self.loop(self.gaussian) * (1 / 4)  # four at once
        self.gaussian_row = self.loop(gaussian, [self.gaussian]) + self.gaussian_element * -3  # three left over

        def sums(count: int) -> list[Loop]:
            return [
                loop
                for loop in self.innermost
                if loop.counts["LDG"] == count
                and loop.counts["FADD"] == count
                and not loop.counts["STS"]
                and loop.outer.counts["MUFU"] == 1
            ]

        (many,) = only(sums(16), "16 parts of a distance", instance)
        (some,) = only(sums(4), "4 parts of a distance", instance)
        self.slots_16, self.slots_4 = self.loop(many), self.loop(some)
        self.slot_element = self.loop(many.outer, [many, some]) + self.slots_4 * (-3 / 4)

        # The steps of the matrix and those of the class blocks, each in a loop of their own.
        steps: dict[frozenset[int], list[Loop]] = defaultdict(list)
        for loop in self.innermost:
            if loop.counts["SHFL"] and loop.counts["MUFU"] and loop.counts["FFMA"]:
                steps[loop.outer.body].append(loop)
        found = sorted(steps.values(), key=len, reverse=True)
        classes_apart = shape.size > 32
        only([loops[0].outer for loops in found], "loops around steps", instance, 1 + classes_apart)
        self.step_loops = only(found[0], "Householder steps", instance, shape.columns)
        self.steps = [self.loop(loop) for loop in self.step_loops]
        first, task_loop = self.step_loops[0], self.step_loops[0].outer
        weighing = {n for loop in task_loop.inner if loop.counts["LDG"] for n in self.apart(loop, first)}
        self.load = self.way_to_loop(task_loop.header, first, weighing | self.graph.blocks_with(LOAD))
        self.class_steps, self.class_load = self.steps, self.load
        if classes_apart:
            loops = only(found[1], "steps of a class block", instance, 8)
            self.class_steps = [self.loop(loop) for loop in loops]
            self.class_load = self.loop(loops[0].outer, loops)
        (sweep,) = self.find("sweeps", lambda c: c["MUFU"] == 4 and c["LDS"] == 8 and not c["STS"])
        (powers,) = self.find("power sums", lambda c: c["FADD"] == 28 and c["LDS"] == 8 and not c["MUFU"])
        self.sweep, self.powers = self.loop(sweep) * (1 / 4), self.loop(powers) * (1 / 4)  # of one row
        self.end = self.way_to_end(sweep)

        self.before_products = self.way_to_loop(0, self.product_loop)
        without_products = self.apart(self.product_loop, self.difference_loop)
        self.before_differences = self.way_to_loop(0, self.difference_loop, without_products)
        without_differences = self.apart(self.difference_loop, gaussian)
        self.after_products = self.way_to_loop(self.exit_of(self.product_loop), gaussian, without_differences)
        self.after_differences = self.way_to_loop(self.exit_of(self.difference_loop), gaussian)

    def of_distances(self, positions: int) -> Work:
        if positions >= LEAST_POSITIONS:
            return self.before_products + self.of_products(positions) + self.after_products
        return self.before_differences + self.of_differences(positions) + self.after_differences

    def of_gaussian(self, num_samples: int) -> Work:
        """Rows are shared out among the warps, columns among the lanes; a warp takes what any of its lanes takes."""
        sum_ = self.gaussian_row * num_samples
        for row in range(num_samples):
            counts = [(row - lane) // 32 + 1 for lane in range(min(32, row + 1))]
            elements = max(c % 4 for c in counts) + 4 * max(c // 4 for c in counts)
            sum_ += self.gaussian_element * elements
        return sum_ * (1 / self.shape.warps)

    def of_slots(self, num_samples: int, splits: int) -> Work:
        """The Gaussian of distances that are added up from their parts."""
        elements = sum(row // 32 + 1 for row in range(num_samples)) / self.shape.warps
        parts = self.slots_16 * (splits // 16) + self.slots_4 * (splits % 16 / 4)
        return (self.slot_element + parts) * elements

    def of_steps(self, num_samples: int) -> Work:
        return self._reduction(self.steps, self.shape.size, self.shape.thread_columns, num_samples)

    def of_classes(self, sizes: Sequence[int]) -> Work:
        """Class blocks by the warps in turn: the work of the busiest one."""
        if self.shape.size <= 32:
            return total(self.load + self.of_steps(size) for size in sizes)
        blocks = [self.class_load + self._reduction(self.class_steps, 32, 4, size) for size in sizes]
        return max((total(blocks[warp :: self.shape.warps]) for warp in range(self.shape.warps)), key=lambda w: w.issue)

    def _reduction(self, steps: Sequence[Work], size: int, thread_columns: int, num_samples: int) -> Work:
        """Steps k = pad - 1 .. size - 2, pad = size - N; step k in register column max(k, 0) / thread columns."""
        pad = size - num_samples
        return total(steps[max(k, 0) // thread_columns] for k in range(pad - 1, size - 1))

    def of_spectrum(self, num_samples: int) -> Work:
        """The sweeps, one a pole, and the power sums, which lanes of the same warp take after one another."""
        return (self.sweep + self.powers) * (num_samples - 1) + self.end

    def stages(self, num_samples: int, class_sizes: Sequence[int]) -> dict[str, Work]:
        """The work of one matrix behind its distances, by stages."""
        return {
            "centred Gaussian": self.of_gaussian(num_samples),
            "load": self.load,
            "steps": self.of_steps(num_samples),
            "class blocks": self.of_classes(class_sizes),
            "spectrum": self.of_spectrum(num_samples),
        }


def class_sizes(num_samples: int) -> list[int]:
    """As equal as they can be."""
    return [len(range(c, num_samples, NUM_CLASSES)) for c in range(min(NUM_CLASSES, num_samples))]


# --- the networks -----------------------------------------------------------------------------------------------------


def num_splits(num_positions: int) -> int:
    return min(max(num_positions // constant("kPositionsPerSplit", "plan.h"), 1), constant("kMostSplits", "plan.h"))


def num_rounds(num_positions: int) -> int:
    return math.ceil(num_positions / (num_splits(num_positions) * constant("kLongestSum", "plan.h")))


@dataclass
class Times:
    """In us: by the throughput of the busiest pipe alone, with perfect overlap of resident warps, with none."""

    throughput: float = 0
    overlap: float = 0
    no_overlap: float = 0

    def __add__(self, other: "Times") -> "Times":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Times(*(a + b for a, b in pairs))

    def at_least(self, us: float) -> "Times":
        return Times(*(max(time, us) for time in dataclasses.astuple(self)))


def rounds(teams: int, one: Work, shape: Shape) -> Times:
    """The times of teams of equal work, as many at once as the multiprocessors hold."""
    multiprocessors, us = H100["multiprocessors"], 1e6 / H100["clock_hz"]
    blocks = math.ceil(teams / shape.teams)
    full, rest = divmod(blocks, multiprocessors * shape.blocks)
    times = Times()
    for count, resident in ((full, shape.blocks), (1 if rest else 0, math.ceil(rest / multiprocessors))):
        warps = math.ceil(resident * shape.teams * shape.warps / 4)  # of one scheduler
        busy = warps * one.pipe
        times += Times(count * us * busy, count * us * max(busy, one.alone), count * us * warps * one.alone)
    return times


def predict(layer: Layer, entropies: EntropiesKernel, distances: DistancesKernel) -> dict[str, Any]:
    """The times of the op relevance on one layer: the launches of csrc/cuda/launches.cuh and plan.h."""
    num_samples, num_positions = layer.num_samples, math.prod(layer.map_shape)
    splits = num_splits(num_positions)
    matrix = total(entropies.stages(num_samples, class_sizes(num_samples)).values())
    us_per_byte = 1e6 / H100["bandwidth_bytes_per_s"]
    map_us = 4 * num_samples * num_positions * us_per_byte  # of one filter, read once
    if splits == 1:
        own, launches = matrix + entropies.of_distances(num_positions), 1
        times = rounds(layer.num_filters, own, entropies.shape).at_least(layer.num_filters * map_us)
    else:
        slot_bytes = splits * num_samples * (num_samples + 1) // 2 * 4
        most = max(1, constant("kMostWorkspaceBytes", "plan.h") // slot_bytes)
        cuts, slot_us, times = math.ceil(layer.num_filters / most), slot_bytes * us_per_byte, Times()
        turns = num_rounds(num_positions)
        part = distances.of_part(num_positions / (splits * turns))
        own = matrix + entropies.of_slots(num_samples, splits) + entropies.of_gaussian(num_samples) * -1
        for cut in range(cuts):
            filters = len(range(cut, layer.num_filters, cuts))
            for _ in range(turns):
                times += rounds(filters * splits, part, distances.shape).at_least(filters * (map_us / turns + slot_us))
            times += rounds(filters, own, entropies.shape).at_least(filters * slot_us)
        launches = (1 + turns) * cuts
    launches += 1  # the float64 route always follows
    launch_us = launches * H100["launch_us"]
    shape = (num_samples, layer.num_filters, *layer.map_shape)
    return {
        "layer": layer.name,
        "shape": shape,
        "layers_of_this_shape": layer.count,
        "splits": splits,
        "launches": launches,
        **{f"{name}_us": time + launch_us for name, time in dataclasses.asdict(times).items()},
        "floor_us": 1e3 * bench_layers.floor(shape, H100)["floor_ms"],
    }


# --- the record -------------------------------------------------------------------------------------------------------


def rounded(value: Any) -> Any:
    """Whole cycles and tenths of a us: more digits would pretend to something."""
    if isinstance(value, Work):
        return {name: round(cycles) for name, cycles in dataclasses.asdict(value).items()}
    if isinstance(value, float):
        return round(value, 1)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def describe(kernel: EntropiesKernel) -> dict[str, Any]:
    """All counts of one kernel; the cycles of a matrix are those of a multiprocessor with all schedulers at work."""
    shape, matrices = kernel.shape, []
    for num_samples in (shape.size, *((100,) if shape.size == 128 else ())):
        stages = kernel.stages(num_samples, class_sizes(num_samples))
        whole = total(stages.values())
        share = shape.warps / 4  # a warp takes one of four schedulers
        matrices.append(
            {
                "num_samples": num_samples,
                "class_sizes": class_sizes(num_samples),
                "stages": stages,
                "whole": whole,
                "issue_cycles_per_multiprocessor": whole.issue * share,
                "pipe_cycles_per_multiprocessor": whole.pipe * share,
                "steps_ffma_cycles_per_multiprocessor": share
                * sum(
                    kernel.step_loops[max(k, 0) // shape.thread_columns].counts["FFMA"]
                    for k in range(shape.size - num_samples - 1, shape.size - 1)
                ),
            }
        )
    return {
        "architecture": kernel.architecture,
        "kernel": str(kernel.instance),
        "size": shape.size,
        "warps": shape.warps,
        "local_memory_instructions": kernel.local_memory,
        "steps": [
            {**dataclasses.asdict(cycles), "ffma": loop.counts["FFMA"], "memory": memory_instructions(loop.counts)}
            for cycles, loop in zip(kernel.steps, kernel.step_loops, strict=True)
        ],
        "class_steps": kernel.class_steps,
        "product_per_position": per_position(kernel.product, PRODUCT_STAGE),
        "product_hmma_per_position": kernel.hmma / PRODUCT_STAGE,
        "difference_per_position": per_position(
            kernel.difference * (1 / POSITIONS_AT_ONCE) + kernel.difference_stage * (1 / DIFFERENCE_STAGE), 1
        ),
        "before_products": kernel.before_products,
        "after_products": kernel.after_products,
        "matrices": matrices,
    }


def per_position(stage: Work, positions: int) -> dict[str, float]:
    return dataclasses.asdict(stage * (1 / positions))


def memory_instructions(counts: Counter) -> int:
    return sum(counts[opcode] for opcode in OPCODES["memory"].split())


def commit() -> str | None:
    """The last commit that changed what is compiled, "-dirty" where it has changed since."""
    sources = ("csrc/cuda", "csrc/numerics")
    git = ("git", "-c", "safe.directory=*", "-C", str(ROOT))  # a copy may belong to another user
    log = subprocess.run([*git, "log", "-1", "--format=%H", "--", *sources], capture_output=True, text=True)
    status = subprocess.run([*git, "status", "--porcelain", "--", *sources], capture_output=True, text=True)
    return log.stdout.strip() + ("-dirty" if status.stdout.strip() else "") or None


def read_kernels(cubins: Iterable[Cubin]) -> list[Kernel]:
    """Find the loops of the kernels that keep a matrix in registers, and of their distances."""
    kinds = {"entropies_kernel": EntropiesKernel, "distances_kernel": DistancesKernel}
    return [
        kinds[instance.kernel](instance, code, cubin.architecture)
        for cubin in cubins
        if cubin.source == "entropies"  # which has those of the other source as well
        for instance, code in machine_code(cubin.path).items()
        if instance.kernel in kinds and instance.shape.size <= LARGEST_SIZE
    ]


def estimate(folder: Path) -> dict[str, Any]:
    kernels = read_kernels(compile_cubins(folder, sources=("entropies",)))
    entropies = sorted(
        (kernel for kernel in kernels if isinstance(kernel, EntropiesKernel)),
        key=lambda kernel: (kernel.architecture, kernel.shape.size),
    )
    (chain,) = (k for k in entropies if (k.architecture, k.shape.size) == ("90", LARGEST_SIZE))
    (parts,) = (
        k for k in kernels if isinstance(k, DistancesKernel) and k.shape == chain.shape and k.architecture == "90"
    )
    networks = []
    for name, layers in NETWORKS.items():
        rows = [predict(layer, chain, parts) for layer in layers]
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
        "assumed": {"gpu": H100, "classes": NUM_CLASSES, "pipes": PIPES, "latency": dict(LATENCY)},
        "kernels": rounded([describe(kernel) for kernel in entropies]),
        "networks": rounded(networks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="JSON to write")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        record = estimate(Path(folder))
    write_json(out, record)
    for kernel in record["kernels"]:
        for matrix in kernel["matrices"]:
            cycles = matrix["issue_cycles_per_multiprocessor"] / 1e3
            print(
                f"sm_{kernel['architecture']} size {kernel['size']} N = {matrix['num_samples']}: {cycles:.1f}k cycles"
            )
    for network in record["networks"]:
        ms = [network[f"{name}_us"] / 1e3 for name in ("throughput", "overlap", "no_overlap", "floor")]
        print("{}: {:.2f}, {:.2f} .. {:.2f} ms, floor {:.2f} ms; estimates".format(network["network"], *ms))


if __name__ == "__main__":
    main()
