"""A whole-model scoring pass, hrel_ext.collect: every convolution of a network, forward pass and width search included.

Beside it the forward pass alone, and the same pass with ``hrel_ext.reference`` in the hooks.
"""
# SPDX-License-Identifier: MIT

from contextlib import ExitStack

import pytest
import torch
import torchvision
from conftest import SEED
from torch import nn

import hrel_ext
from hrel_ext import reference
from hrel_ext.collect import collect
from hrel_ext.testing import oracle, tolerance_bits
from hrel_ext.zoo.models import MODELS

CHECKED_FILTERS = 2  # of every layer, against float64
NETWORKS = {  # with random weights, and the shape of an image
    "lenet5": (lambda: MODELS["lenet5"](), 100, (1, 28, 28)),
    "vgg16": (lambda: torchvision.models.vgg16(weights=None).features, 128, (3, 32, 32)),
}


@pytest.mark.benchmark(group="model")
@pytest.mark.parametrize("name", NETWORKS)
def test_scoring_pass(name, quick, take_turns, record_row):
    make, num_samples, image = NETWORKS[name]
    num_samples = 8 if quick else num_samples
    torch.manual_seed(SEED)
    model = make().eval()
    images, labels = torch.randn(num_samples, *image), torch.randint(0, 10, (num_samples,))
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    errors: list[float] = []

    def check(_: nn.Module, __: tuple, maps: torch.Tensor) -> None:
        sigma, few = hrel_ext.kernel_width(maps, labels).item(), maps[:, :CHECKED_FILTERS]
        exact = oracle(few, labels, sigma, 1.01).relevance
        errors.append((hrel_ext.relevance(few, labels, sigma=sigma).double() - exact).abs().max().item())

    @torch.no_grad()
    def forward(hook=None) -> None:
        with ExitStack() as hooks:
            for layer in layers if hook else ():
                hooks.enter_context(layer.register_forward_hook(hook))
            model(images)

    def score_by_reference(_: nn.Module, __: tuple, maps: torch.Tensor) -> None:
        reference.relevance(maps, labels)

    forward(check)
    assert max(errors) <= 2 * tolerance_bits(images.dtype, num_samples, 1.01)
    times = take_turns(
        lambda: collect(model, [(images, labels)]),
        {"forward": forward, "reference": lambda: forward(score_by_reference)},
        rounds=5,
    )
    record_row(
        model=name, num_samples=num_samples, image=list(image), layers=len(layers), error_bits=max(errors), **times
    )
