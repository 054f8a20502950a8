"""VGG-16 on CIFAR-10: 84.9 % of the MACs and 95 % of the parameters go.

"code" is the published code of HRel, github.com/sarvanichinthapalli/HRel at 9fe6a4f, folder of VGG-16; "computed" is
worked out from it.
"""
# SPDX-License-Identifier: MIT

import dataclasses

from hrel_ext.recipes.recipe import Recipe, Stage

# Filters left and the share p, conv1 to conv13. Code: p = .02 twice, .04 twice, .05 three times, .1 six times; limits
# 19 48 65 65 96 112 110 186 79 79 49 48 60, which its rule overshoots. Computed: after cycle 36 its counts are these,
# which cost what the abstract says: -84.86 % MACs with biases, -94.98 % parameters without batch norm.
_ENDS = (20, 48, 64, 64, 95, 107, 107, 175, 71, 71, 44, 44, 56)
_SHARES = (0.02,) * 2 + (0.04,) * 2 + (0.05,) * 3 + (0.1,) * 6

_PAPER = Recipe(
    model="vgg16",  # code: 13 convolutions with batch norm, head 512-512-10, no dropout
    data="cifar10",  # code: mean .4914 .4822 .4465, standard deviation .2023 .1994 .2010
    limits={f"conv{i}": left for i, left in enumerate(_ENDS, start=1)},
    shares={f"conv{i}": share for i, share in enumerate(_SHARES, start=1)},
    where="relu",  # code: after convolution, batch norm and ReLU, before the pool
    scored_batches=None,  # code: all of the training images
    sigma="layer",  # code: alignment on the output of the layer
    alpha=1.0,  # code: -sum lambda log2 lambda
    baseline=Stage(epochs=300, learning_rate=0.1, milestones=(80, 140, 230)),  # code
    cycle=Stage(epochs=90, learning_rate=0.01, milestones=(40, 70)),  # code
    final=Stage(epochs=90, learning_rate=0.01, milestones=(40, 70)),  # code: the idle round after the last cycle
    batch_size=100,  # code
    margin=4,  # code: crops of 32 with a margin of 4, mirrored
    mirror=True,
    momentum=0.9,  # code
    weight_decay=5e-4,  # code
    source=(
        "HRel's code, VGG-16 on CIFAR-10: 300 + 36 x 90 + 90 = 3630 epochs; the code takes a 37th cycle, to 19 filters "
        "in conv1. Departs from it: widths are those of the scored mini-batches, where the code fixed the moving "
        "average of pre-training for all cycles; filters are removed, where the code masked them and left their batch "
        "norm's shift in the network; scores are of the images themselves, not of random crops; every retraining has a "
        "new optimizer, where the code kept the momentum; scores are not rounded; 5000 images are held out, and choose "
        "the epoch that the code chose by the test images."
    ),
)

VGG16_CIFAR10 = {
    "paper": _PAPER,
    "short": dataclasses.replace(
        _PAPER,
        scored_batches=100,
        baseline=Stage(epochs=60, learning_rate=0.1),
        cycle=Stage(epochs=1, learning_rate=0.02),
        final=Stage(epochs=100, learning_rate=0.05),
        precision="bf16",
        channels_last=True,
        source=(
            "The paper schedule with training of our own, a one-cycle schedule each time, in mixed precision: "
            "60 + 36 x 1 + 100 = 196 epochs; 100 mini-batches score. Estimated, not measured: 15 minutes on an H100, "
            "at 3.7 s an epoch and 5 s to score and cut."
        ),
    ),
}
