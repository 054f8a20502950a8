"""LeNet-5 on MNIST, from 20 and 50 filters to 4 and 5: the paper's pruning schedule with shorter training."""
# SPDX-License-Identifier: MIT

from hrel_ext.recipes.recipe import Recipe, Stage

LENET5_MNIST = Recipe(
    model="lenet5",
    data="mnist",
    limits={"conv1": 4, "conv2": 5},
    shares={"conv1": 0.04, "conv2": 0.12},
    scored={"conv1": "conv1", "conv2": "conv2"},
    baseline=Stage(epochs=10, learning_rate=0.05),
    cycle=Stage(epochs=1, learning_rate=0.02),
    final=Stage(epochs=30, learning_rate=0.1),
    source=(
        "HRel's code for LeNet-5 (batch, momentum, weight decay, shares, limits, scored tensor, alpha). Departs from "
        "it in training: one cycle of 10, 1 and 30 epochs instead of 40 epochs in steps each time."
    ),
)
