"""ResNet-110 on CIFAR-10 to 8, 15 and 30 filters by stage: inside the blocks, or the residual stream as well.

HRel's code has the network and no experiment with it. These are the recipes of ResNet-56 with 18 blocks in a stage;
with the residual stream pruned they cost what the abstract says, -76.95 % MACs (computed).
"""
# SPDX-License-Identifier: MIT

import dataclasses

from hrel_ext.recipes.resnet56_cifar10 import (
    BOTH,
    DEPARTURES,
    ENDS,
    RESNET56_CIFAR10,
    RESNET56_CIFAR10_STREAM,
    SHARES,
    short,
)
from hrel_ext.recipes.stages import per_stage

_BLOCKS = (18, 18, 18)
_INNER = dataclasses.replace(
    RESNET56_CIFAR10["paper"],
    model="resnet110",
    limits=per_stage("stage", _BLOCKS, ("conv1",), ENDS),
    shares=per_stage("stage", _BLOCKS, ("conv1",), SHARES),
    source=(
        "Ours: HRel's code for ResNet-56 with 18 blocks in a stage, 182 + 9 x 100 + 100 = 1182 epochs. Only the first "
        "convolution of each block is pruned, -52.0 % MACs. " + DEPARTURES
    ),
)
_STREAM = dataclasses.replace(
    RESNET56_CIFAR10_STREAM["paper"],
    model="resnet110",
    limits={"conv1": ENDS[0], **per_stage("stage", _BLOCKS, BOTH, ENDS)},
    shares={"conv1": SHARES[0], **per_stage("stage", _BLOCKS, BOTH, SHARES)},
    source=(
        "Ours: HRel's code for ResNet-56 with 18 blocks in a stage, 182 + 9 x 100 + 100 = 1182 epochs. All "
        "convolutions are pruned, those that write to a residual stream with the same indices: -76.95 % MACs, the "
        "figure of the abstract. " + DEPARTURES
    ),
)
_ESTIMATE = "22 minutes on an H100, at 9.5 s an epoch and 20 s to score and cut"
RESNET110_CIFAR10 = {"paper": _INNER, "short": short(_INNER, 50, 2, 50, _ESTIMATE)}
RESNET110_CIFAR10_STREAM = {"paper": _STREAM, "short": short(_STREAM, 50, 2, 50, _ESTIMATE)}
