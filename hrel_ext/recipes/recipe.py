"""An experiment as data: everything that decides its result, in one frozen dataclass."""
# SPDX-License-Identifier: MIT

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One piece of training by SGD.

    Attributes:
        epochs: passes over the training split; 0 leaves this piece out.
        learning_rate: the largest one, in the first half of a one-cycle schedule; the first one of a step schedule.
        milestones: None for one cycle; otherwise the epochs after which the learning rate is divided by 10.
    """

    epochs: int
    learning_rate: float
    milestones: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A pruning experiment: train, prune in cycles down to limits or to a budget, train again.

    Attributes:
        model: name in `hrel_ext.zoo.models.MODELS`, or PACKAGE.MODULE:FUNCTION that makes a network.
        data: name in `hrel_ext.zoo.data.DATASETS`.
        weights: that the baseline starts from: a safetensors file of the network's state dict, or a name of
            torchvision's for it, such as "IMAGENET1K_V1", see `hrel_ext.zoo.models.load_weights`; None for random ones.
        limits: layer to the filters it is left with at the end; or ``target`` is given.
        shares: layer to the share p of its n remaining filters that goes in each cycle: int(p n) + 1 of them, never
            beyond the limit.
        target: the budget, such as {"macs": 0.4}, see `hrel_ext.pruning.plan`, as are the rules that follow.
        cycles: in which a budget is reached; towards limits it follows from the shares.
        residual: "inner" or "stream".
        round_to: filters of a layer that is pruned are a multiple of this.
        min_channels: filters that a layer keeps at least.
        max_ratio: largest share of a layer's filters that goes.
        max_drop: stop and roll back when the validation accuracy falls by more than this, in [0, 1]; None does not.
        criterion: what ranks the filters: name in `hrel_ext.pruning.CRITERIA`.
        where: tensor that is scored: "conv", or what follows the convolution: "bn", "relu", "pool".
        scored: layer to the module whose output is scored for it, in place of ``where``.
        scored_batches: mini-batches of the training split that filters are scored on; None for all.
        sigma: kernel width when scoring: "layer" (aligned per layer, HRel's), "filter" (aligned per filter), or a
            number.
        alpha: order of the entropy; 1 is what HRel's published code computes.
        baseline: training of the whole network before the first cycle.
        cycle: retraining after each cycle.
        final: training of the pruned network after the last cycle.
        batch_size: samples in a mini-batch, in training and in scoring.
        margin: training images are shifted by at most so many pixels, each anew in every epoch; 0 does not.
        mirror: whether every second training image is mirrored.
        momentum: of SGD.
        nesterov: whether it is Nesterov's.
        weight_decay: of SGD.
        label_smoothing: of all training without a teacher, see `hrel_ext.pruning.train`, as for the next two.
        precision: "no", "bf16" or "fp16".
        accumulate: parts of a mini-batch.
        distillation: weight of the unpruned network as a teacher in retraining; 0 for none.
        channels_last: memory format of the network and the images; faster on GPUs with tensor cores.
        plane_every: training steps from one point of the information plane to the next; None does not record it.
        source: where the numbers come from, and what departs from there.
    """

    model: str
    data: str
    weights: str | None = None
    limits: Mapping[str, int] | None = None
    shares: Mapping[str, float] | None = None
    target: Mapping[str, float | str] | None = None
    cycles: int = 1
    residual: str = "inner"
    round_to: int = 1
    min_channels: int = 1
    max_ratio: float = 1.0
    max_drop: float | None = None
    criterion: str = "hrel"
    where: str = "conv"
    scored: Mapping[str, str] | None = None
    scored_batches: int | None = None
    sigma: float | str = "layer"
    alpha: float = 1.0
    baseline: Stage
    cycle: Stage
    final: Stage
    batch_size: int = 100
    margin: int = 0
    mirror: bool = False
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    precision: str = "no"
    accumulate: int = 1
    distillation: float = 0.0
    channels_last: bool = False
    plane_every: int | None = None
    source: str


def general(model: str, data: str) -> Recipe:
    """Settings for a network and a data set that no experiment of ours is about; limits or a target are to be added."""
    return Recipe(
        model=model,
        data=data,
        where="relu",
        scored_batches=20,
        baseline=Stage(epochs=30, learning_rate=0.1),
        cycle=Stage(epochs=2, learning_rate=0.02),
        final=Stage(epochs=30, learning_rate=0.05),
        margin=4 if data == "cifar10" else 0,
        mirror=data == "cifar10",
        source="Ours, a starting point: nothing in it is tuned.",
    )
