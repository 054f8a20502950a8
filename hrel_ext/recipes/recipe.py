"""An experiment as data: everything that decides its result, in one frozen dataclass."""
# SPDX-License-Identifier: MIT

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One piece of training by SGD.

    Attributes:
        epochs: passes over the training split.
        learning_rate: the largest one, in the first half of a one-cycle schedule; the first one of a step schedule.
        milestones: None for one cycle; otherwise the epochs after which the learning rate is divided by 10.
    """

    epochs: int
    learning_rate: float
    milestones: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A pruning experiment: train, then prune in cycles down to the limits, then train again.

    Attributes:
        model: name in `hrel_ext.zoo.models.MODELS`.
        data: name in `hrel_ext.zoo.data.DATASETS`.
        limits: layer to the filters it is left with at the end.
        shares: layer to the share p of its n remaining filters that goes in each cycle: int(p n) + 1 of them, never
            beyond the limit.
        scored: layer to the module whose output is scored for it: the convolution itself (HRel on LeNet-5), or what
            follows it, such as the pool.
        sigma: kernel width when scoring: "layer" (aligned per layer, HRel's), "filter" (aligned per filter), or a
            number.
        alpha: order of the entropy; 1 is what HRel's published code computes.
        baseline: training of the whole network before the first cycle.
        cycle: retraining after each cycle.
        final: training of the pruned network after the last cycle.
        batch_size: samples in a mini-batch, in training and in scoring.
        momentum: of SGD.
        weight_decay: of SGD.
        source: where the numbers come from, and what departs from there.
    """

    model: str
    data: str
    limits: Mapping[str, int]
    shares: Mapping[str, float]
    scored: Mapping[str, str]
    sigma: float | str = "layer"
    alpha: float = 1.0
    baseline: Stage
    cycle: Stage
    final: Stage
    batch_size: int = 100
    momentum: float = 0.9
    weight_decay: float = 5e-4
    source: str
