"""What a network costs: multiply-accumulates, parameters, and measured latency."""
# SPDX-License-Identifier: MIT

import math
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hrel_ext.collect import evaluation_mode


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
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None  # a GPU returns before it is done
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
