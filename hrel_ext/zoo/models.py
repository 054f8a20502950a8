"""The networks of the paper's experiments, with the layers, names and initial weights of the authors' code."""
# SPDX-License-Identifier: MIT

from collections import OrderedDict
from collections.abc import Callable

from torch import nn


def lenet5(num_classes: int = 10) -> nn.Sequential:
    """LeNet-5 with 20 and 50 filters and the head 800-800-500-classes of HRel's code, 1.08 million parameters.

    Every layer has a name (``conv1``, ``relu1``, ``pool1``, ``conv2``, ...), so that any of them can be scored.

    Args:
        num_classes: outputs of the last layer.

    Returns:
        A network from (N, 1, 28, 28) float32 to (N, num_classes) logits; Kaiming-normal weights, zero biases.

    Source: github.com/sarvanichinthapalli/HRel, LeNet-5 on MNIST.
    """
    layers = [
        ("conv1", nn.Conv2d(1, 20, 5)),  # (N, 20, 24, 24)
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),  # (N, 20, 12, 12)
        ("conv2", nn.Conv2d(20, 50, 5)),  # (N, 50, 8, 8)
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),  # (N, 50, 4, 4)
        ("flatten", nn.Flatten()),  # (N, 800)
        ("fc1", nn.Linear(800, 800)),
        ("relu3", nn.ReLU()),
        ("fc2", nn.Linear(800, 500)),
        ("relu4", nn.ReLU()),
        ("fc3", nn.Linear(500, num_classes)),
    ]
    return _initialise(nn.Sequential(OrderedDict(layers)))


def _initialise(network: nn.Sequential) -> nn.Sequential:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return network


MODELS: dict[str, Callable[..., nn.Module]] = {"lenet5": lenet5}
