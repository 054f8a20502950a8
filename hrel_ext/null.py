"""Stand-in until the branch null is merged."""
# SPDX-License-Identifier: MIT

from dataclasses import dataclass

import torch
from torch import Tensor

from hrel_ext._batch import sort_by_class
from hrel_ext.relevance import terms_of_batch


@dataclass(frozen=True, eq=False)
class PermutationNull:
    relevance: Tensor
    null: Tensor

    @property
    def mean(self) -> Tensor:
        return self.null.mean(0)

    @property
    def std(self) -> Tensor:
        return self.null.std(0)

    @property
    def debiased(self) -> Tensor:
        return self.relevance - self.mean

    @property
    def z(self) -> Tensor:
        return self.debiased / self.std

    @property
    def p_value(self) -> Tensor:
        return (1 + (self.null >= self.relevance).sum(0)) / (len(self.null) + 1)


def null_of_batch(batch, sigma, alpha, permutations: Tensor) -> PermutationNull:
    draws = [
        terms_of_batch(batch._replace(classes=sort_by_class(batch.classes.labels[p])), sigma, alpha).relevance
        for p in permutations
    ]
    return PermutationNull(terms_of_batch(batch, sigma, alpha).relevance, torch.stack(draws))
