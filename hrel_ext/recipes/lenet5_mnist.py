"""LeNet-5 on MNIST, from 20 and 50 filters to 4 and 5.

"code" is the published code of HRel, github.com/sarvanichinthapalli/HRel at 9fe6a4f, folder of LeNet-5.
"""
# SPDX-License-Identifier: MIT

import dataclasses

from hrel_ext.recipes.recipe import Recipe, Stage

_PAPER = Recipe(
    model="lenet5",  # code: 20-50 filters, head 800-800-500-10
    data="mnist",  # code: pixels in [0, 1], no normalisation, no augmentation
    limits={"conv1": 4, "conv2": 5},  # code: as shipped; (3, 4) and (2, 3) were set by hand
    shares={"conv1": 0.04, "conv2": 0.12},  # code: int(p n) + 1 filters in each cycle, clamped: 16, 17 or 18 cycles
    where="conv",  # code: the output of the convolution, before ReLU and pool
    scored_batches=None,  # code: all of the training images
    sigma="layer",  # code: alignment on the output of the layer
    alpha=1.0,  # code: -sum lambda log2 lambda
    baseline=Stage(epochs=40, learning_rate=0.1, milestones=(20, 30)),  # code
    cycle=Stage(epochs=40, learning_rate=0.1, milestones=(10, 20)),  # code
    final=Stage(epochs=40, learning_rate=0.1, milestones=(10, 20)),  # code: the idle round after the last cycle
    batch_size=100,  # code
    momentum=0.9,  # code
    weight_decay=5e-4,  # code
    source=(
        "HRel's code, LeNet-5 on MNIST: 40 + 16 x 40 + 40 = 720 epochs to (4, 5), 800 to (2, 3). Departs from it: "
        "widths are those of the scored mini-batches, not a moving average over training; filters are removed, not "
        "masked; every retraining has a new optimizer, where the code kept the momentum; scores are not rounded; "
        "5000 images are held out, and choose the epoch that the code chose by the test images."
    ),
)

LENET5_MNIST = {
    "paper": _PAPER,
    "short": dataclasses.replace(
        _PAPER,
        baseline=Stage(epochs=10, learning_rate=0.05),
        cycle=Stage(epochs=1, learning_rate=0.02),
        final=Stage(epochs=100, learning_rate=0.1),
        margin=1,
        weight_decay=1e-4,
        label_smoothing=0.1,
        distillation=0.9,
        scored_batches=100,
        channels_last=True,
        source=(
            "The paper schedule with training of our own, a one-cycle schedule each time: 10 + 16 x 1 + 100 = 126 "
            "epochs to (4, 5), most of them of a network that is small by then; filters are scored on 10000 images. "
            "From the first epoch on, so before pruning as well as after, images are shifted by up to a pixel and "
            "weights decay less, and labels are smooth: in the first training by smoothing, afterwards by the "
            "unpruned network as a teacher. On validation images this was what kept the small networks from learning "
            "by heart."
        ),
    ),
}
