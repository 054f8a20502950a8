"""The experiments by name and schedule: "paper" as HRel's code has it, "short" in a fraction of the epochs."""
# SPDX-License-Identifier: MIT

from hrel_ext.recipes.lenet5_digits import LENET5_DIGITS
from hrel_ext.recipes.lenet5_mnist import LENET5_MNIST
from hrel_ext.recipes.recipe import Recipe, Stage, general
from hrel_ext.recipes.resnet50_imagefolder import RESNET50_IMAGEFOLDER
from hrel_ext.recipes.resnet56_cifar10 import RESNET56_CIFAR10, RESNET56_CIFAR10_STREAM
from hrel_ext.recipes.resnet110_cifar10 import RESNET110_CIFAR10, RESNET110_CIFAR10_STREAM
from hrel_ext.recipes.vgg16_cifar10 import VGG16_CIFAR10

EXPERIMENTS: dict[str, dict[str, Recipe]] = {
    "lenet5-digits": LENET5_DIGITS,
    "lenet5-mnist": LENET5_MNIST,
    "vgg16-cifar10": VGG16_CIFAR10,
    "resnet56-cifar10": RESNET56_CIFAR10,
    "resnet56-cifar10-stream": RESNET56_CIFAR10_STREAM,
    "resnet110-cifar10": RESNET110_CIFAR10,
    "resnet110-cifar10-stream": RESNET110_CIFAR10_STREAM,
    "resnet50-imagefolder": RESNET50_IMAGEFOLDER,
}

# The short schedule by model and data set, the one inside the blocks for residual networks.
RECIPES: dict[tuple[str, str], Recipe] = {
    (short.model, short.data): short
    for name, short in ((name, schedules["short"]) for name, schedules in EXPERIMENTS.items())
    if not name.endswith("-stream")
}

__all__ = ["EXPERIMENTS", "RECIPES", "Recipe", "Stage", "general"]
