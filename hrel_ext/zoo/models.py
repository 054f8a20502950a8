"""The networks of the paper's experiments, as in the authors' code (layers, initial weights), and others by name."""
# SPDX-License-Identifier: MIT

import importlib
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

# Filters of VGG-16's convolutions; "P" is a pool of 2 x 2.
_VGG16 = (64, 64, "P", 128, 128, "P", 256, 256, 256, "P", 512, 512, 512, "P", 512, 512, 512)


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


def vgg16(num_classes: int = 10) -> nn.Sequential:
    """VGG-16 with batch norm for 32 x 32 images and the head 512-512-classes of HRel's code, 15.0 million parameters.

    Layers are named by the number of their convolution: ``conv1``, ``bn1``, ``relu1``, ..., ``conv13``; ``pool2``,
    ``pool4``, ``pool7``, ``pool10`` and ``pool13`` follow the convolutions of these numbers.

    Args:
        num_classes: outputs of the last layer.

    Returns:
        A network from (N, 3, 32, 32) float32 to (N, num_classes) logits; Kaiming-normal weights, zero biases.

    Source: github.com/sarvanichinthapalli/HRel, VGG-16 on CIFAR-10: 3 x 3 convolutions with bias, no dropout.
    """
    layers, width, number = [], 3, 0
    for filters in _VGG16:
        if filters == "P":
            layers.append((f"pool{number}", nn.MaxPool2d(2)))
            continue
        number += 1
        layers += [
            (f"conv{number}", nn.Conv2d(width, filters, 3, padding=1)),
            (f"bn{number}", nn.BatchNorm2d(filters)),
            (f"relu{number}", nn.ReLU()),
        ]
        width = filters
    layers += [
        (f"pool{number}", nn.AvgPool2d(2)),  # (N, 512, 1, 1)
        ("flatten", nn.Flatten()),
        ("fc1", nn.Linear(512, 512)),
        ("bn_fc1", nn.BatchNorm1d(512)),
        ("relu_fc1", nn.ReLU()),
        ("fc2", nn.Linear(512, num_classes)),
    ]
    return _initialise(nn.Sequential(OrderedDict(layers)))


class Shortcut(nn.Module):
    """Every second pixel, and zero channels on both sides: from (N, C, H, W) to (N, 2C, H / 2, W / 2), no weights.

    Channel c of the output is channel ``source[c]`` of the input, or zeros where ``source[c]`` is -1. Both sides can so
    lose channels of their own.

    Args:
        width: C, even.
    """

    source: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        source = torch.full((2 * width,), -1)
        source[width // 2 : width // 2 + width] = torch.arange(width)
        self.in_channels = width
        self.register_buffer("source", source)  # (2C,)

    def remove(self, *, inputs: Sequence[int] = (), outputs: Sequence[int] = ()) -> None:
        """Remove channels: an output whose input goes becomes zeros, an input whose output goes is not read."""
        left = torch.ones(self.in_channels, dtype=torch.bool, device=self.source.device)
        left[list(inputs)] = False
        # One entry more, for -1: an output without an input stays one.
        position = torch.where(left, left.cumsum(0) - 1, -1)
        source = torch.cat([position, position.new_tensor([-1])])[self.source]
        kept = torch.ones(len(source), dtype=torch.bool, device=source.device)
        kept[list(outputs)] = False
        self.in_channels = int(left.sum())
        self.source = source[kept]

    def forward(self, x: Tensor) -> Tensor:
        pixels = x[:, :, ::2, ::2]
        return pad(pixels, (0, 0, 0, 0, 0, 1))[:, self.source]  # the channel of zeros is the last, so -1 reads it


class _BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, width: int, filters: int) -> None:
        super().__init__()
        stride = 1 if width == filters else 2
        self.conv1 = nn.Conv2d(width, filters, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(width)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A residual network for 32 x 32 images: three stages of basic blocks, 16, 32 and 64 filters wide.

    Modules: ``conv1``, ``bn1``, ``relu1``; ``stage1.0`` to ``stage3.{n-1}``, each with ``conv1``, ``bn1``, ``relu1``,
    ``conv2``, ``bn2``, ``shortcut`` and ``relu2``; ``pool``, ``flatten``, ``fc``. Shortcuts have no weights (option A).

    Args:
        blocks: basic blocks in each stage; the depth is 6 blocks + 2.
        num_classes: outputs of the last layer.

    Source: K. He, X. Zhang, S. Ren, J. Sun, CVPR 2016, section 4.2; zero channels on both sides as in
    github.com/sarvanichinthapalli/HRel.
    """

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        width = 16
        for stage, filters in enumerate((16, 32, 64), start=1):
            widths = [width, *[filters] * (blocks - 1)]
            self.add_module(f"stage{stage}", nn.Sequential(*(_BasicBlock(w, filters) for w in widths)))
            width = filters
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """From (N, 3, 32, 32) to (N, num_classes) logits."""
        x = self.relu1(self.bn1(self.conv1(images)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(self.flatten(self.pool(x)))


def _initialise(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _torchvision(name: str, num_classes: int = 1000) -> nn.Module:
    """A network of torchvision with random weights, from (N, 3, H, W) to (N, num_classes) logits."""
    try:
        from torchvision.models import get_model
    except ImportError as error:
        raise ImportError(f"{name} needs torchvision: pip install 'hrel_ext[zoo]'") from error
    return get_model(name, weights=None, num_classes=num_classes)


# Each takes num_classes and returns a network with fresh weights.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": lenet5,
    "vgg16": vgg16,
    "resnet20": partial(CifarResNet, 3),
    "resnet56": partial(CifarResNet, 9),
    "resnet110": partial(CifarResNet, 18),
    "resnet18": partial(_torchvision, "resnet18"),
    "resnet50": partial(_torchvision, "resnet50"),
    "mobilenet_v2": partial(_torchvision, "mobilenet_v2"),
    "densenet121": partial(_torchvision, "densenet121"),
}


def make_model(name: str, **options: int) -> nn.Module:
    """A network by name, with fresh weights if it is one of ours.

    Args:
        name: key of `MODELS`, or PACKAGE.MODULE:FUNCTION that makes a network; the working directory is searched, too.
        options: of the function, say ``num_classes`` of one of `MODELS`.

    Raises:
        ValueError: neither of both, or the function does not return a network.
        ImportError: the module is not found.
    """
    if name in MODELS:
        return MODELS[name](**options)
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, or PACKAGE.MODULE:FUNCTION, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    make = getattr(importlib.import_module(module), function, None)
    try:
        network = make(**options)
    except TypeError as error:
        network = error
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"model must name a function without arguments that returns a torch.nn.Module, got {name!r}: {network!r}"
        )
    return network


def load_weights(network: nn.Module, weights: str, name: str, *, download: bool = False) -> None:
    """Give a network trained weights, in place.

    Args:
        network: of the architecture of the weights, with as many outputs.
        weights: a safetensors file with its state dict, ending in ``.safetensors``; or the name of torchvision's
            weights for it, such as "IMAGENET1K_V1".
        name: of the network, as torchvision calls it.
        download: whether weights of torchvision that are not in torch's cache may be downloaded.

    Raises:
        FileNotFoundError: no such file; weights that are not in the cache and may not be downloaded.
        ValueError: no such name, a damaged file, or weights that do not fit the network.
        ImportError: torchvision or safetensors is not installed.
    """
    state = (
        _from_file(Path(weights)) if weights.endswith(".safetensors") else _from_torchvision(weights, name, download)
    )
    own = network.state_dict()
    lacking = [key for key in own if key not in state]
    other = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    for what, keys in (("has no", lacking), ("has another shape of", shapes), ("has the unknown", other)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            got = f", {tuple(state[keys[0]].shape)} in place of {tuple(own[keys[0]].shape)}" if keys is shapes else ""
            raise ValueError(f"weights must fit {name}, got {weights}, which {what} {keys[0]}{more}{got}")
    network.load_state_dict(state)


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("weights in a file need safetensors: pip install 'hrel_ext[prune]'") from error
    if not path.is_file():
        raise FileNotFoundError(f"weights must be in a file that is there, got {str(path)!r}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"weights must be in a whole safetensors file, got {str(path)!r}: {error}") from None


def _from_torchvision(weights: str, name: str, download: bool) -> dict[str, Tensor]:
    try:
        from torchvision.models import get_model_weights
    except ImportError as error:
        raise ImportError(f"the weights {weights} need torchvision: pip install 'hrel_ext[zoo]'") from error
    try:
        known = get_model_weights(name)
    except ValueError:  # not one of torchvision's networks
        known = {}
    names = [one.name for one in known]
    if weights not in names:
        of_torchvision = ", or of torchvision " + ", ".join(names) if names else f"; torchvision has none for {name}"
        raise ValueError(f"weights must be a file ending in .safetensors{of_torchvision}, got {weights!r}")
    entry = known[weights]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/", 1)[-1]
    if not cached.is_file() and not download:
        raise FileNotFoundError(
            f"weights {weights} of {name} are not in {cached}: put {entry.url} there, or ask for the download "
            "(--download-weights), or give a file of your own (--weights FILE.safetensors)"
        )
    return entry.get_state_dict(check_hash=True)
