"""Criteria as importances of Torch-Pruning: scores of layers are carried to the channels of its groups.

A group is a set of layers that lose channels together. Its root is the layer it starts from, and Torch-Pruning asks for
one number for each channel of the root.
"""
# SPDX-License-Identifier: MIT

import warnings
from collections.abc import Iterable, Mapping
from functools import reduce

import torch
import torch_pruning
from torch import Tensor, nn

from hrel_ext.collect import Batch
from hrel_ext.pruning.criteria import Criterion, HRel, Layers, Progress

# What a layer's own output channels are removed by; a depthwise convolution has one of its own.
_OUT = (
    torch_pruning.prune_conv_out_channels,
    torch_pruning.prune_depthwise_conv_out_channels,
    torch_pruning.prune_linear_out_channels,
)
_REDUCTIONS = {"max": "amax", "mean": "mean"}


class GroupImportance(torch_pruning.importance.Importance):
    """Any criterion as an ``importance=`` of Torch-Pruning's ``BasePruner``.

    Of a group, the scores of all scored layers that lose output channels with it are carried to the channels of the
    root, through concatenations and past layers without scores, and reduced to one number each. The model is scored
    afresh when a weight has changed, once for all groups of a step.

    What the pruner gets for the channels of a group is pairwise different, in the order of the scores, and of equal
    scores the lower index is the lower: its selection, which leaves the order of equal numbers open, has no choice.
    Only equal scores are moved for that, each to the next float64. Where channels form blocks that lose the same
    positions (a grouped convolution, a group norm), the scores of a position are averaged over the blocks first, and
    values keep so many bits fewer that the pruner's own average changes none.

    A group with a channel that no scored layer covers is not pruned. It is in ``unscored``, and a warning names it.

    With ``global_pruning=True`` the pruner removes whatever is not above a threshold. Layers that have the very same
    scores then lose at most one channel each more than asked.

    Args:
        criterion: scores the layers.
        layers: as for `Criterion.scores`; None takes every ``nn.Conv2d`` that the criterion can score.
        reduction: of the scores that meet in one channel, as in a residual stream: "mean" averages over the layers;
            "max" keeps a channel that any of them needs, but lets the layer with the largest scores decide alone.

    Attributes:
        unscored: root of a group to the reason why it is not pruned, since the model was last scored.

    Raises:
        ValueError: an unknown reduction; when called, as `Criterion.scores`.

    Example:
        >>> from hrel_ext.pruning.criteria import L1Norm
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([3.0, 1.0, 2.0, 1.0])[:, None, None, None])
        >>> pruner = torch_pruning.pruner.BasePruner(
        ...     model, torch.zeros(1, 1, 5, 5), GroupImportance(L1Norm()), pruning_ratio=0.5, ignored_layers=[model[2]]
        ... )
        >>> pruner.step()
        >>> model[0].weight.flatten().tolist()
        [3.0, 2.0]
    """

    def __init__(self, criterion: Criterion, *, layers: Layers = None, reduction: str = "mean") -> None:
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(map(repr, _REDUCTIONS))}, got {reduction!r}")
        self.criterion, self.layers, self.reduction = criterion, layers, reduction
        self.unscored: dict[str, str] = {}
        self._scores: Mapping[str, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, group: torch_pruning.dependency.Group) -> Tensor | None:
        """Score the root channels of a group.

        Args:
            group: of Torch-Pruning, of some or all channels of the root.

        Returns:
            (channels,), float64 on the CPU, low goes first; None where the group cannot be scored.
        """
        model = group._DG.model
        scores = self.criterion.scores(model, self.layers)
        if scores is not self._scores:  # scored afresh
            self._scores, self.unscored = scores, {}
        names = {module: name for name, module in model.named_modules()}
        channels = group[0].root_idxs
        place = {channel: position for position, channel in enumerate(channels)}
        positions, values, lacking = [], [], []
        for item in group:
            name = names.get(item.dep.layer)
            if name is None or item.dep.pruning_fn not in _OUT:
                continue
            if name not in scores:
                lacking.append(name)
                continue
            # Across a concatenation a layer may share but some of its channels with the root, or none.
            pairs = [(place[r], c) for c, r in zip(item.idxs, item.root_idxs, strict=True) if r in place]
            positions += [position for position, _ in pairs]
            values.append(scores[name][[channel for _, channel in pairs]])
        found = torch.full((len(channels),), torch.nan, dtype=torch.float64)
        if positions:
            found.scatter_reduce_(
                0, torch.tensor(positions), torch.cat(values), _REDUCTIONS[self.reduction], include_self=False
            )
        if found.isnan().any():
            self._report(names.get(group[0].dep.layer, group[0].dep.target.name), lacking)
            return None
        blocks = _num_blocks(group)
        if blocks == 1 or len(channels) % blocks or len(channels) != group._DG.get_out_channels(group[0].dep.layer):
            return _pairwise_different(found)
        # In one order for all: .mean(0) rounds some columns otherwise.
        found = reduce(torch.add, found.view(blocks, -1)) / blocks
        return _pairwise_different(found, spare_bits=blocks.bit_length()).repeat(blocks)

    def _report(self, root: str, lacking: list[str]) -> None:
        if root in self.unscored:
            return
        unscored = self.criterion.unscored
        reasons = [f"{name} {unscored[name]}" if name in unscored else f"{name} is not scored" for name in lacking]
        self.unscored[root] = "; ".join(reasons) or "no scored layer has all of its channels"
        warnings.warn(f"the group of {root!r} is not pruned: {self.unscored[root]}", stacklevel=3)


class HRelImportance(GroupImportance):
    """Relevance as an ``importance=`` of Torch-Pruning's ``BasePruner``: `GroupImportance` of the criterion `HRel`.

    Args:
        batches: pairs of inputs (N, ...) and integer labels (N,) that can be gone through again and again, all with
            the same N; a smaller last one is left out unless it is the only one.
        sigma: kernel width in exp(-d^2 / sigma^2), as for `hrel_ext.relevance`; None is one per layer and mini-batch.
        alpha: order of the entropy.
        label_sigma: kernel width of the labels.
        where: the tensor that is scored for a convolution: "conv", "bn", "relu" or "pool", see `hrel_ext.collect`.
        layers: as for `GroupImportance`.
        reduction: as for `GroupImportance`.
        progress: wraps ``batches`` in each pass, for example in a progress bar.

    Attributes:
        unscored: root of a group to the reason why it is not pruned, since the model was last scored.

    Source: Sarvani et al., HRel, Neural Networks 147 (2022), doi 10.1016/j.neunet.2021.12.017.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> labels = torch.arange(24) % 3
        >>> images = torch.rand(24, 1, 4, 4) + labels[:, None, None, None]
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([0.0, 1.0])[:, None, None, None])  # the first is dead
        >>> importance = HRelImportance([(images, labels)], where="relu", layers=["0"])
        >>> pruner = torch_pruning.pruner.BasePruner(model, images, importance, ignored_layers=[model[2]])
        >>> pruner.step()  # by default half of the channels go
        >>> model[0].weight.flatten().tolist()
        [1.0]
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        *,
        sigma: float | Tensor | str | None = None,
        alpha: float = 1.01,
        label_sigma: float = 0.1,
        where: str = "conv",
        layers: Layers = None,
        reduction: str = "mean",
        progress: Progress = None,
    ) -> None:
        criterion = HRel(batches, sigma=sigma, alpha=alpha, label_sigma=label_sigma, where=where, progress=progress)
        super().__init__(criterion, layers=layers, reduction=reduction)


def _num_blocks(group: torch_pruning.dependency.Group) -> int:
    """Into how many blocks of channels, which lose the same positions, the layers of a group cut the root's channels.

    As ``BasePruner`` finds it; a depthwise convolution does not count, as each of its channels stands for itself.
    """
    blocks = [1]
    for item in group:
        layer = item.dep.layer
        if isinstance(layer, nn.GroupNorm):
            blocks.append(layer.num_groups)
        elif isinstance(layer, nn.modules.conv._ConvNd) and layer.groups != layer.out_channels:
            blocks.append(layer.groups)
    return max(blocks)


def _pairwise_different(scores: Tensor, spare_bits: int = 0) -> Tensor:
    """Scores (F,), float64 and finite, without equal ones: of those the lower index becomes the lower.

    The order of unequal scores stays as it is. Seen as integers, neighbouring floats are 1 apart; ``spare_bits`` of
    each mantissa are then 0, so that a sum of 2^spare_bits equal scores, and all its partial sums, are exact.
    """
    order = scores.argsort(stable=True)
    steps = torch.arange(len(scores))
    integers = _ordered_integers(scores[order]) >> spare_bits
    integers = (integers - steps).cummax(0).values + steps  # the least that rises by 1 or more at each step
    different = torch.empty_like(scores)
    different[order] = _ordered_integers((integers << spare_bits).view(torch.float64)).view(torch.float64)
    return different


def _ordered_integers(floats: Tensor) -> Tensor:
    """float64 as int64 in the same order, -0.0 as 0. Of the bits of an integer, seen as a float, the way back."""
    bits = floats.view(torch.int64)
    return torch.where(bits < 0, torch.iinfo(torch.int64).min - bits, bits)
