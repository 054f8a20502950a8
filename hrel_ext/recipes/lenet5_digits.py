"""LeNet-5 on scikit-learn's digits: the paper's pruning schedule, with training short enough for a first try."""
# SPDX-License-Identifier: MIT

from hrel_ext.recipes.recipe import Recipe, Stage

LENET5_DIGITS = {
    "short": Recipe(
        model="lenet5",
        data="digits",
        limits={"conv1": 4, "conv2": 5},
        shares={"conv1": 0.04, "conv2": 0.12},
        baseline=Stage(epochs=40, learning_rate=0.05),
        cycle=Stage(epochs=3, learning_rate=0.02),
        final=Stage(epochs=40, learning_rate=0.05),
        source="HRel's LeNet-5 schedule; training and data are ours.",
    )
}
