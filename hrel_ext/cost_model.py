"""What a recipe takes on several GPUs or processes: seconds of scoring and training, bytes exchanged. An estimate.

A rank of n takes every n-th mini-batch of N samples. With M multiply-accumulates and P parameters of the network, O
operations that score a mini-batch (all three fall in equal steps from cycle to cycle), S mini-batches that are scored:

    scoring        ceil(S / n) (N M / forward + O / score) + all-reduce of the table, then the batch norms
    batch norms    ceil(S / n) N M / forward
    an epoch       floor(B / n) (N M / train + all-reduce of 4 P bytes) + validation / n
    all-reduce     2 (n - 1) / n bytes / bandwidth + 2 (n - 1) latency: a ring, nothing overlaps

Rates are measured where `Rates.measured` says so; all else is assumed.
"""
# SPDX-License-Identifier: MIT

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrel_ext.collect import evaluation_mode
from hrel_ext.pruning import plan, schedule
from hrel_ext.recipes import Recipe, Stage
from hrel_ext.scores import MOST_ROWS
from hrel_ext.zoo.data import SHAPES
from hrel_ext.zoo.models import make_model

MOST_RANKS = 64
SAMPLES = {  # of training and validation; imagefolder is ImageNet
    "digits": (1137, 300),
    "mnist": (55_000, 5000),
    "fashion_mnist": (55_000, 5000),
    "cifar10": (45_000, 5000),
    "imagefolder": (1_231_167, 50_000),
}
CPU_FILE, GPU_FILE = "throughput.json", "gpu/layers.json"  # of benchmarks/throughput.py and benchmarks/gpu/run.sh
# Assumed, not measured, of GPUs:
GPU_SHARE = 0.15  # of the measured TF32 rate that a network reaches, forward and backward
GPUS_IN_A_MACHINE = 8
BYTES_PER_S_INSIDE, BYTES_PER_S_BETWEEN = 200e9, 25e9  # of an all-reduce, in a machine and between machines
GPU_LATENCY_S = 20e-6  # of one message
CORES_OF_A_GPU = 16  # that decode images
BACKWARD = 2  # a backward pass in forward passes


@dataclass(frozen=True)
class Rates:
    """How fast one rank is, and how far that is known.

    Attributes:
        device: "cpu" or "cuda".
        forward: multiply-accumulates a second, in eval mode.
        train: the same of a training step, counted as those of its forward pass.
        score: operations a second, of `score_operations`.
        decode: images a second that a rank reads from files.
        bandwidth: bytes a second of an all-reduce.
        latency_s: of one message.
        measured: what was measured, one line each.
        assumed: what was not.
    """

    device: str
    forward: float
    train: float
    score: float
    decode: float
    bandwidth: float
    latency_s: float
    measured: tuple[str, ...]
    assumed: tuple[str, ...]

    def pass_s(self, samples: int, macs: float, operations: float, read_s: float = 0.0) -> float:
        """Seconds in which one rank scores a mini-batch; ``read_s`` those in which its images are read meanwhile."""
        return max(samples * macs / self.forward, read_s) + operations / self.score

    def step_s(self, samples: int, macs: float, parameters: float, ranks: int, read_s: float = 0.0) -> float:
        """Seconds of a training step."""
        return max(samples * macs / self.train, read_s) + self.all_reduce_s(4 * parameters, ranks)

    def all_reduce_s(self, num_bytes: float, ranks: int) -> float:
        """Seconds until all ranks have the sum of so many bytes of each."""
        bandwidth = self.bandwidth
        if self.device == "cuda" and ranks > GPUS_IN_A_MACHINE:
            bandwidth = BYTES_PER_S_BETWEEN
        return sent_bytes(num_bytes, ranks) / bandwidth + 2 * (ranks - 1) * self.latency_s


@dataclass(frozen=True)
class Workload:
    """A recipe in numbers, from the unpruned network to the pruned one.

    Attributes:
        recipe: whose.
        cycles: how many.
        macs: of a sample, before and after pruning.
        parameters: before and after.
        operations: that score a mini-batch, the sum over the layers that are scored, before and after.
        filters: that are scored, before.
        scored_batches: S.
    """

    recipe: Recipe
    cycles: int
    macs: tuple[int, int]
    parameters: tuple[int, int]
    operations: tuple[float, float]
    filters: int
    scored_batches: int


@dataclass(frozen=True)
class Estimate:
    """What a recipe takes with so many ranks: seconds of all cycles together, bytes of one rank.

    Attributes:
        ranks: n.
        score_s: scoring and new batch norm statistics.
        retrain_s: the epochs after each cycle and after the last one.
        baseline_s: the epochs before the first cycle.
        step_bytes: that are all-reduced in a training step, before pruning.
        table_bytes: that are all-reduced in a cycle's scoring, before pruning.
        sent_bytes: that a rank sends in the whole run.
    """

    ranks: int
    score_s: float
    retrain_s: float
    baseline_s: float
    step_bytes: int
    table_bytes: int
    sent_bytes: float


def score_operations(samples: int, features: int, filters: int) -> float:
    """Operations that score F maps of D numbers: N (N + 1) D F for the distances, 4/3 N^3 F for the spectrum."""
    return (samples * (samples + 1) * features + 4 / 3 * samples**3) * filters


def sent_bytes(num_bytes: float, ranks: int) -> float:
    """Bytes that each rank sends in a ring all-reduce: 2 (n - 1) / n of what is added up."""
    return 2 * (ranks - 1) / ranks * num_bytes


def workload(recipe: Recipe) -> Workload:
    """Plan a recipe on a network with random weights, and count.

    Args:
        recipe: of one of our data sets.

    Returns:
        The counts.
    """
    model, example = make_model(recipe.model), torch.zeros(1, *SHAPES[recipe.data])
    rules = {name: getattr(recipe, name) for name in ("target", "limits", "residual", "round_to", "min_channels")}
    made = plan(model, example, **rules, max_ratio=recipe.max_ratio)
    cycles = recipe.cycles
    if recipe.limits:
        widths = {name: model.get_submodule(name).out_channels for name in recipe.limits}
        cycles = len(schedule(widths, recipe.limits, recipe.shares)) - 1
    scored = {name for group in made.groups for name in made.scored(group)}
    sizes, n = map_sizes(model, example), recipe.batch_size
    layers = [layer for layer in made.layers if layer.name in scored]
    return Workload(
        recipe,
        cycles,
        (made.before.macs, made.after.macs),
        (made.before.parameters, made.after.parameters),
        (
            sum(score_operations(n, sizes[layer.name], layer.before) for layer in layers),
            sum(score_operations(n, sizes[layer.name], layer.after) for layer in layers),
        ),
        sum(layer.before for layer in layers),
        recipe.scored_batches or SAMPLES[recipe.data][0] // n,
    )


def estimate(work: Workload, rates: Rates, ranks: int) -> Estimate:
    """What a recipe takes with so many ranks.

    Args:
        work: of `workload`.
        rates: of one rank, of `cpu_rates` or `gpu_rates`.
        ranks: from 1 to 64; each takes at least one mini-batch of an epoch.

    Returns:
        Seconds and bytes.

    Raises:
        ValueError: more ranks than mini-batches, or than 64.
    """
    recipe = work.recipe
    n = recipe.batch_size
    train, validation = SAMPLES[recipe.data]
    batches = train // n
    if not 1 <= ranks <= min(MOST_RANKS, batches):
        raise ValueError(
            f"the number of GPUs or processes must be between 1 and {MOST_RANKS}, and at most the {batches} "
            f"mini-batches of an epoch, got {ranks}"
        )
    read_s = n / rates.decode if recipe.data == "imagefolder" else 0.0  # of a mini-batch, beside the computation

    def between(pair: tuple[float, float], cycle: int) -> float:
        return pair[0] + (pair[1] - pair[0]) * cycle / work.cycles

    def epochs(stage: Stage, cycle: int) -> tuple[float, float]:
        """Seconds and bytes sent."""
        macs, parameters, steps = between(work.macs, cycle), between(work.parameters, cycle), batches // ranks
        evaluation_s = max(macs / rates.forward, read_s / n) * validation / ranks
        seconds = steps * rates.step_s(n, macs, parameters, ranks, read_s) + evaluation_s
        return stage.epochs * seconds, stage.epochs * steps * sent_bytes(4 * parameters, ranks)

    table = 4 * min(work.scored_batches, MOST_ROWS) * work.filters
    score_s = retrain_s = sent = 0.0
    turns = math.ceil(work.scored_batches / ranks)
    for cycle in range(work.cycles):
        macs, operations = between(work.macs, cycle), between(work.operations, cycle)
        both_s = rates.pass_s(n, macs, operations, read_s) + rates.pass_s(n, macs, 0, read_s)  # and batch norms
        score_s += turns * both_s + rates.all_reduce_s(table, ranks)
        sent += sent_bytes(table, ranks)
    for stage, cycle in [*((recipe.cycle, k) for k in range(1, work.cycles + 1)), (recipe.final, work.cycles)]:
        seconds, volume = epochs(stage, cycle)
        retrain_s, sent = retrain_s + seconds, sent + volume
    baseline_s, volume = epochs(recipe.baseline, 0)
    return Estimate(ranks, score_s, retrain_s, baseline_s, 4 * work.parameters[0], table, sent + volume)


def cpu_rates(results: Path, model: str) -> Rates:
    """Rates of one process with one thread, from ``throughput.json`` of benchmarks/throughput.py.

    Args:
        results: folder of the file.
        model: network of the recipe; one that was not measured takes the mean rates of those that were.

    Raises:
        FileNotFoundError: there is no such file.
    """
    found = _read(results / CPU_FILE, "python benchmarks/throughput.py")
    networks = found["networks"]
    measured = [
        f"{', '.join(networks)}: forward, training step, scoring; all-reduce of two local processes; JPEG files"
    ]
    measured.append(f"on {found['environment']['processor']}, one thread a process, {CPU_FILE}")
    assumed = ["processes do not slow each other down; each has a core"]
    rows = [networks[model]] if model in networks else list(networks.values())
    if model not in networks:
        assumed.append(f"{model} has the mean rates of the networks that were measured")
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in ("forward", "train", "score")}
    link = found["all_reduce"]
    return Rates(
        "cpu",
        **mean,
        decode=found["decode_images_per_s"],
        bandwidth=link["bytes_per_s"],
        latency_s=link["latency_s"],
        measured=tuple(measured),
        assumed=tuple(assumed),
    )


def gpu_rates(results: Path, model: str) -> Rates:
    """Rates of one GPU: scoring and ceilings from ``gpu/layers.json`` of benchmarks/gpu/run.sh, the rest assumed.

    Args:
        results: folder of the files.
        model: network of the recipe; one that was not measured takes the rate of all layers that were.

    Raises:
        FileNotFoundError: there are no such files.
    """
    cpu = cpu_rates(results, model)
    found = _read(results / GPU_FILE, "benchmarks/gpu/run.sh")
    rows = [row for row in found["rows"] if row["network"] == model] or found["rows"]
    whose = model if any(row["network"] == model for row in rows) else "all layers"
    rate = GPU_SHARE * found["ceilings"]["tf32_flops_per_s"] / 2  # a multiply-accumulate is two operations
    return Rates(
        "cuda",
        forward=rate,
        train=rate / (1 + BACKWARD),
        score=sum(map(_operations, rows)) / sum(map(_seconds, rows)),
        decode=CORES_OF_A_GPU * cpu.decode,
        bandwidth=BYTES_PER_S_INSIDE,
        latency_s=GPU_LATENCY_S,
        measured=(
            f"scoring of {whose} and the TF32 rate on {found['environment']['gpu']['name']}, {GPU_FILE}",
            f"JPEG files a core decodes, {CPU_FILE}",
        ),
        assumed=(
            f"training and forward passes at {GPU_SHARE:.0%} of the TF32 rate, backward = {BACKWARD} x forward",
            f"all-reduce at {BYTES_PER_S_INSIDE / 1e9:.0f} GB/s among {GPUS_IN_A_MACHINE} GPUs of a machine, "
            f"{BYTES_PER_S_BETWEEN / 1e9:.0f} GB/s between machines, {1e6 * GPU_LATENCY_S:.0f} us a message",
            f"{CORES_OF_A_GPU} cores of the measured kind decode for each GPU",
        ),
    )


def _read(file: Path, writer: str) -> Mapping[str, Any]:
    if not file.exists():
        raise FileNotFoundError(f"{file} must be there: {writer} writes it; or give --results")
    return json.loads(file.read_text())


def _operations(row: Mapping[str, Any]) -> float:
    samples, filters, *maps = row["shape"]
    return row["layers_of_this_shape"] * score_operations(samples, math.prod(maps), filters)


def _seconds(row: Mapping[str, Any]) -> float:
    return row["layers_of_this_shape"] * row["public"]["median_ms"] / 1e3


def map_sizes(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Convolution to the numbers D in one of its maps."""
    sizes: dict[str, int] = {}

    def hook(name: str) -> Any:
        return lambda module, inputs, output: sizes.__setitem__(name, math.prod(output.shape[2:]))

    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(evaluation_mode(model))
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                stack.enter_context(module.register_forward_hook(hook(name)))
        model(example)
    return sizes
