"""What a network costs: multiply-accumulates, parameters, measured latency and memory."""
# SPDX-License-Identifier: MIT

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrel_ext.collect import evaluation_mode

TURN_MS = 200.0  # of `compare_latency`: some passes of most networks, and short enough to share a disturbance


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates for one sample, and parameters.

    Attributes:
        macs: of all convolutions and linear layers.
        conv_macs: of the convolutions alone, which is what HRel reports for LeNet-5.
        parameters: numbers in all parameters, biases included, buffers not.
    """

    macs: int
    conv_macs: int
    parameters: int


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass, in milliseconds, and how it was measured.

    Attributes:
        median_ms: the middle one of the runs.
        batch_size: samples in a pass.
        runs: passes that were timed.
        threads: of torch, on the CPU.
        device: where it ran.
    """

    median_ms: float
    batch_size: int
    runs: int
    threads: int
    device: str


def check_device(device: str) -> None:
    """Raise ValueError unless a network can run on ``device``: "cpu", or "cuda" where torch sees a GPU."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda needs a GPU that torch can use, got torch.cuda.is_available() = False")


def count(model: nn.Module, example_inputs: Tensor) -> Cost:
    """Count multiply-accumulates and parameters.

    A convolution costs, for each output value, (input channels / groups) x kernel size multiply-accumulates; a linear
    layer its input features. One multiply-accumulate counts once (not as two operations), biases do not count, and
    neither does any other layer. A layer that runs twice counts twice.

    Args:
        model: run once, in eval mode and without gradients.
        example_inputs: (N, ...); the counts are for one of the N samples.

    Returns:
        The counts.
    """
    macs = {"conv": 0, "linear": 0}

    def count_conv(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: tuple[Tensor], output: Tensor) -> None:
        macs["conv"] += output[0].numel() * (layer.in_channels // layer.groups) * math.prod(layer.kernel_size)

    def count_linear(layer: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
        macs["linear"] += output[0].numel() * layer.in_features

    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(evaluation_mode(model))
        for module in model.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                stack.enter_context(module.register_forward_hook(count_conv))
            elif isinstance(module, nn.Linear):
                stack.enter_context(module.register_forward_hook(count_linear))
        model(example_inputs.to(next(model.parameters()).device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(macs=macs["conv"] + macs["linear"], conv_macs=macs["conv"], parameters=parameters)


def measure_latency(model: nn.Module, inputs: Tensor, *, runs: int = 50, warmup: int = 10) -> Latency:
    """Time forward passes, in eval mode and without gradients.

    Args:
        model: the network.
        inputs: (N, ...), moved to the device of the model before the clock starts.
        runs: timed passes.
        warmup: passes before them, which choose algorithms and fill caches.

    Returns:
        The median in milliseconds, with batch size, threads and device.
    """
    device = next(model.parameters()).device
    inputs = inputs.to(device)
    finish: Any = torch.cuda.synchronize if device.type == "cuda" else lambda: None  # a GPU returns before it is done
    times_ms = []
    with evaluation_mode(model), torch.no_grad():
        for run in range(-warmup, runs):
            finish()
            start = time.perf_counter()
            model(inputs)
            finish()
            if run >= 0:
                times_ms.append((time.perf_counter() - start) * 1e3)
    return Latency(statistics.median(times_ms), len(inputs), runs, torch.get_num_threads(), str(device))


def compare_latency(models: Sequence[nn.Module], inputs: Tensor, *, turns: int = 10) -> list[list[Latency]]:
    """Time networks by turns, so that what slows the machine down for a while hits all of them.

    Args:
        models: the networks.
        inputs: (N, ...), one mini-batch for all.
        turns: of each network; in a turn of about 200 ms it runs once to fill the caches, then between 1 and 50 times
            against the clock.

    Returns:
        For each network one `Latency` per turn, in milliseconds.
    """
    passes = []
    for model in models:
        once_ms = measure_latency(model, inputs, runs=1, warmup=1).median_ms
        passes.append(max(1, min(50, round(TURN_MS / once_ms))))
    latencies: list[list[Latency]] = [[] for _ in models]
    for _ in range(turns):
        for model, runs, measured in zip(models, passes, latencies, strict=True):
            measured.append(measure_latency(model, inputs, runs=runs, warmup=1))
    return latencies


def peak_memory(model: nn.Module, inputs: Tensor) -> int:
    """The most memory that the tensors of one forward pass take at a time, in bytes.

    The sum of parameters and buffers, of the inputs, and of what PyTorch's allocator hands out during the pass beyond
    what it gets back, at its largest: maps, copies in other layouts and work space. On the CPU by PyTorch's profiler,
    which records every allocation, so that the number is the same each time; on CUDA by
    ``torch.cuda.max_memory_allocated``, in the allocator's blocks of 512 bytes. Not counted is what goes past the
    allocator (the interpreter, libraries and what they keep for themselves).

    Args:
        model: the network, run in eval mode and without gradients.
        inputs: (N, ...), moved to the device of the model.

    Returns:
        Bytes.
    """
    device = next(model.parameters()).device
    inputs = inputs.to(device)
    held = sum(t.numel() * t.element_size() for t in (inputs, *model.parameters(), *model.buffers()))
    with evaluation_mode(model), torch.no_grad():
        model(inputs)  # a first pass allocates what stays
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            model(inputs)
            return held + torch.cuda.max_memory_allocated(device) - before
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes of its own doings to stderr
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            model(inputs)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))  # the one public form in which allocations keep their order
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    return held + max(accumulate(e["args"]["Bytes"] for e in sorted(events, key=lambda e: e["ts"])))
