"""The experiments by model and data set."""
# SPDX-License-Identifier: MIT

from hrel_ext.recipes.lenet5_digits import LENET5_DIGITS
from hrel_ext.recipes.lenet5_mnist import LENET5_MNIST
from hrel_ext.recipes.recipe import Recipe, Stage, general

RECIPES: dict[tuple[str, str], Recipe] = {
    (recipe.model, recipe.data): recipe for recipe in (LENET5_DIGITS, LENET5_MNIST)
}

__all__ = ["RECIPES", "Recipe", "Stage", "general"]
