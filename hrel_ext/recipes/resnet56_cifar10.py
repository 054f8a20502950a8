"""ResNet-56 on CIFAR-10 to 8, 15 and 30 filters by stage: inside the blocks, or the residual stream as well.

"code" is the published code of HRel, github.com/sarvanichinthapalli/HRel at 9fe6a4f, folder of ResNet-56; "computed"
is worked out from it.
"""
# SPDX-License-Identifier: MIT

import dataclasses

from hrel_ext.recipes.recipe import Recipe, Stage
from hrel_ext.recipes.stages import per_stage

_BLOCKS = (9, 9, 9)
ENDS = (8, 15, 30)  # code: of 16, 32 and 64 filters by stage
# Code: 1, 2 and 4 filters in each cycle, clamped. int(p n) + 1 with these shares is 1, 2, and 5 falling to 3: the
# third stage goes 59 54 50 46 42 39 36 33 30 in place of 60 56 52 48 44 40 36 32 30. Computed: 9 cycles, as there.
SHARES = (0.06, 0.06, 0.07)
BOTH = ("conv1", "conv2")

DEPARTURES = (
    "Departs from it: widths are those of the scored mini-batches, not a moving average over training; filters are "
    "removed, where the code masked them, left their batch norm's shift in the network and counted convolutions that "
    "were still read; scores are of the images themselves, not of random crops; every retraining has a new optimizer, "
    "where the code kept the momentum; 5000 images are held out, and choose the epoch that the code chose by the test "
    "images."
)
_INNER = Recipe(
    model="resnet56",  # code: stem 16, three stages of 9 basic blocks, shortcuts without weights
    data="cifar10",  # code: mean .4914 .4822 .4465, standard deviation .2023 .1994 .2010
    limits=per_stage("stage", _BLOCKS, ("conv1",), ENDS),
    shares=per_stage("stage", _BLOCKS, ("conv1",), SHARES),
    residual="inner",
    where="conv",  # code: the output of the convolution, before batch norm
    scored_batches=None,  # code: all of the training images
    sigma="layer",  # code: alignment on the output of the layer
    alpha=1.0,  # code: -sum lambda log2 lambda
    baseline=Stage(epochs=182, learning_rate=0.1, milestones=(91, 136)),  # code
    cycle=Stage(epochs=100, learning_rate=0.01, milestones=(20, 70)),  # code
    final=Stage(epochs=100, learning_rate=0.01, milestones=(20, 70)),  # code: the idle round after the last cycle
    batch_size=100,  # code
    margin=4,  # code: crops of 32 with a margin of 4, mirrored
    mirror=True,
    momentum=0.9,  # code
    nesterov=True,  # code
    weight_decay=2e-4,  # code
    source=(
        "HRel's code, ResNet-56 on CIFAR-10: 182 + 9 x 100 + 100 = 1182 epochs. Only the first convolution of each "
        "block is pruned, -51.9 % MACs; the code masks the second one as well, which leaves it in the network. "
        + DEPARTURES
    ),
)
_STREAM = dataclasses.replace(
    _INNER,
    limits={"conv1": ENDS[0], **per_stage("stage", _BLOCKS, BOTH, ENDS)},  # the stem belongs to the first stream
    shares={"conv1": SHARES[0], **per_stage("stage", _BLOCKS, BOTH, SHARES)},
    residual="stream",
    source=(
        "HRel's code, ResNet-56 on CIFAR-10: 182 + 9 x 100 + 100 = 1182 epochs. All convolutions are pruned, those "
        "that write to a residual stream with the same indices: -76.89 % MACs, the figure of the abstract, of a "
        "network that the code did not train. " + DEPARTURES
    ),
)


def short(paper: Recipe, baseline: int, cycle: int, final: int, estimate: str) -> Recipe:
    """The paper schedule with so many epochs, in mini-batches of 200, which take half the time of as many of 100."""
    total = baseline + 9 * cycle + final
    return dataclasses.replace(
        paper,
        scored_batches=50,
        baseline=Stage(epochs=baseline, learning_rate=0.2),
        cycle=Stage(epochs=cycle, learning_rate=0.05),
        final=Stage(epochs=final, learning_rate=0.1),
        batch_size=200,
        precision="bf16",
        channels_last=True,
        source=(
            "The paper schedule with training of our own, a one-cycle schedule each time, in mixed precision and in "
            f"mini-batches of 200, in scoring as well: {baseline} + 9 x {cycle} + {final} = {total} epochs; 50 "
            f"mini-batches score. Estimated, not measured: {estimate}."
        ),
    )


_ESTIMATE = "15 minutes on an H100, at 4.8 s an epoch and 10 s to score and cut"
RESNET56_CIFAR10 = {"paper": _INNER, "short": short(_INNER, 60, 4, 60, _ESTIMATE)}
RESNET56_CIFAR10_STREAM = {"paper": _STREAM, "short": short(_STREAM, 60, 4, 60, _ESTIMATE)}
