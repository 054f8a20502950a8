"""Sets of filters: what they say together about the labels, and which set to keep.

The kernel of a set is the product of its filters' kernels, so their squared distances, in units of the widths, add:

    K_S = exp(-sum_{f in S} d_f^2 / sigma_f^2),   I(T_S; B) = S(A_S) + S(B) - S(A_S o B / tr),   A_S = K_S / N.
"""
# SPDX-License-Identifier: MIT

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrel_ext import _ops
from hrel_ext._batch import (
    LABEL_SIGMA,
    RESOLUTION_BITS,
    Batch,
    check_finite,
    check_widths,
    positive,
    prepare,
    read,
    widths,
)
from hrel_ext.width import aligned_width

_MATRIX_BYTES = 32 << 20  # of the kernels (f, N, N) of the candidates that are tried at a time


def joint_relevance(
    acts: Tensor,
    labels: Tensor,
    subset: Sequence[int],
    *,
    sigma: float | Tensor | None = None,
    alpha: float = 1.01,
    label_sigma: float = LABEL_SIGMA,
) -> Tensor:
    """What a set of filters says about the labels together, in bits.

        I(T_S; B) = S(A_S) + S(B) - S(A_S o B / tr(A_S o B)),   A_S = exp(-sum_{f in S} d_f^2 / sigma_f^2) / N

    With more filters K_S comes closer to the identity, and the estimate to S(B), whatever the filters say: compare sets
    of equal size.

    Args:
        acts: (N, F, *spatial), as for `hrel_ext.relevance`; never modified.
        labels: (N,), integer class ids >= 0 on the same device.
        subset: indices of the filters, each once; none of them says 0 bits.
        sigma: kernel width > 0, one number or (F,); None takes the width of the layer that aligns best with the labels,
            the natural scale, as the distances of all filters add to those of the layer.
        alpha: order of the entropy, > 0.
        label_sigma: width of the kernel of the labels.

    Returns:
        (), bits, on the device of ``acts``; float64 for float64 input, else float32. Not differentiable.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also where a value of ``acts`` is not
        finite.

    Source: the product kernel of Yu, Sanchez Giraldo, Jenssen, Principe, doi 10.1109/TPAMI.2019.2932976.

    Example:
        >>> labels = torch.arange(8) % 4
        >>> acts = 10.0 * torch.stack((labels % 2, labels // 2, labels % 2), 1)  # halves of the class; the last a copy
        >>> [round(hrel_ext.joint_relevance(acts, labels, s, sigma=1.0).item(), 4) for s in ([0], [0, 1], [0, 2])]
        [1.0, 2.0, 1.0]
    """
    layer = _Layer(prepare(acts, labels, label_sigma), sigma, positive("alpha", alpha))
    chosen = _indices("subset", subset, layer.num_filters)
    if not chosen:
        return layer.distances.new_zeros(())
    return layer.relevance(layer.distances[chosen].sum(0)[None])[0]


def conditional_relevance(
    acts: Tensor,
    labels: Tensor,
    given: Sequence[int],
    *,
    sigma: float | Tensor | None = None,
    alpha: float = 1.01,
    label_sigma: float = LABEL_SIGMA,
) -> Tensor:
    """What each filter adds to a set of filters, in bits.

        I(T_f; B | T_S) = I(T_{S + f}; B) - I(T_S; B) = S(A_{S+f}) + S(A_S, B) - S(A_S) - S(A_{S+f}, B)

    A copy of a filter of the set adds little, however relevant it is alone: not quite nothing, since the copy narrows
    the kernel of the set.

    Args:
        acts, labels, sigma, alpha, label_sigma: as for `joint_relevance`.
        given: indices of the filters of S, each once; with none of them this is `hrel_ext.relevance`.

    Returns:
        (F,), bits; 0 for the filters of S themselves.

    Raises:
        TypeError, ValueError: as `joint_relevance`.

    Source: the chain rule; the product kernel as for `joint_relevance`.

    Example:
        >>> labels = torch.arange(8) % 4
        >>> acts = 10.0 * torch.stack((labels % 2, labels // 2, labels % 2), 1)
        >>> [abs(round(bits, 4)) for bits in hrel_ext.conditional_relevance(acts, labels, [0], sigma=1.0).tolist()]
        [0.0, 1.0, 0.0]
    """
    layer = _Layer(prepare(acts, labels, label_sigma), sigma, positive("alpha", alpha))
    chosen = _indices("given", given, layer.num_filters)
    base = layer.distances[chosen].sum(0)  # (N, N)
    known = layer.relevance(base[None])[0] if chosen else layer.distances.new_zeros(())
    added = layer.relevance_with_each(base, range(layer.num_filters)) - known  # (F,)
    added[chosen] = 0
    return added


@dataclass(frozen=True)
class Selection:
    """A set of filters found step by step.

    Attributes:
        kept: indices of the filters that stay, ascending.
        order: the filters in the order in which they were taken (forward) or removed (backward).
        relevance_bits: the relevance of the kept set after each step, mean over the mini-batches, in bits.

    Source: of the greedy rule, see `select_filters`.

    Example:
        >>> hrel_ext.Selection(kept=(0, 2), order=(2, 0), relevance_bits=(1.0, 1.5)).kept  # of select_filters
        (0, 2)
    """

    kept: tuple[int, ...]
    order: tuple[int, ...]
    relevance_bits: tuple[float, ...]


def select_filters(
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    keep: int,
    method: str = "forward",
    sigma: float | Tensor | None = None,
    alpha: float = 1.01,
    label_sigma: float = LABEL_SIGMA,
) -> Selection:
    """Choose filters greedily by what they say together about the labels, so that no two copies are kept for one.

        forward:   from no filter, take the f with the largest mean over the mini-batches of I(T_{S + f}; B)
        backward:  from all filters, remove the f with the largest mean of I(T_{S - f}; B)

    until ``keep`` are left. Of values that differ by no more than their rounding, 2e-5 bits (1e-10 in float64), the
    lower index is taken (forward) or removed (backward). In large sets all values come close to S(B) and to each other,
    so that in the end the index decides: the first filters of a forward selection are told apart best.

    Args:
        batches: pairs of acts (N, F, *spatial) and labels (N,), as for `joint_relevance`; the same F in all of them.
        keep: number of filters to keep, 1 to F.
        method: "forward" or "backward".
        sigma: as for `joint_relevance`; None is one width per mini-batch.
        alpha: order of the entropy, > 0.
        label_sigma: width of the kernel of the labels.

    Returns:
        The filters that are kept, the steps and their relevance in bits. Equal on the CPU for any number of threads.
        For each mini-batch the squared distances of all filters are held, F N^2 numbers of 4 bytes (8 for float64).

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also where a value is not finite.

    Source: greedy selection by mutual information after Battiti, IEEE Trans. Neural Networks 5 (1994), doi
    10.1109/72.298224, with the product kernel of `joint_relevance`.

    Example:
        >>> labels = torch.arange(16) % 4
        >>> acts = 10.0 * torch.stack((labels % 2, labels % 2, labels // 2), 1)  # the second is a copy of the first
        >>> found = hrel_ext.select_filters([(acts, labels)], keep=2, sigma=1.0)
        >>> found.order, [round(bits, 4) for bits in found.relevance_bits]
        ((0, 2), [1.0, 2.0])
    """
    if method not in ("forward", "backward"):
        raise ValueError(f'method must be "forward" or "backward", got {method!r}')
    if not isinstance(keep, int) or isinstance(keep, bool):
        raise TypeError(f"keep must be an int, got {type(keep).__name__}")
    alpha = positive("alpha", alpha)
    layers = [_Layer(prepare(acts, labels, label_sigma), sigma, alpha) for acts, labels in batches]
    counts = {layer.num_filters for layer in layers}
    if len(counts) != 1:
        got = f"batches with {sorted(counts)} filters" if counts else "no mini-batch"
        raise ValueError(f"batches must hold at least one mini-batch, all with the same number of filters, got {got}")
    (num_filters,) = counts
    if not 1 <= keep <= num_filters:
        raise ValueError(f"keep must be between 1 and the {num_filters} filters, got {keep}")
    forward = method == "forward"
    sign = 1 if forward else -1
    # Sums over up to F filters, from which single ones are taken again: float64, lest they cancel.
    bases = [
        torch.zeros_like(layer.distances[0], dtype=torch.float64)
        if forward
        else layer.distances.sum(0, dtype=torch.float64)
        for layer in layers
    ]  # (N, N) each
    rest, order, bits = list(range(num_filters)), [], []
    for _ in range(keep if forward else num_filters - keep):
        each = zip(layers, bases, strict=True)
        values = torch.stack([layer.relevance_with_each(base, rest, sign) for layer, base in each])  # (batches, rest)
        mean = values.double().mean(0)  # (rest,)
        place = int((mean >= mean.max() - RESOLUTION_BITS[values.dtype]).int().argmax())  # the first one
        best = rest.pop(place)
        order.append(best)
        bits.append(mean[place].item())
        for layer, base in zip(layers, bases, strict=True):
            base.add_(layer.distances[best], alpha=sign)
    return Selection(tuple(sorted(order) if forward else rest), tuple(order), tuple(bits))


class _Layer:
    """One mini-batch: squared distances of every filter in units of its width, (F, N, N), and the labels."""

    def __init__(self, batch: Batch, sigma: float | Tensor | None, alpha: float) -> None:
        if sigma is None:
            chosen = aligned_width(batch, per_filter=False).repeat(batch.acts.shape[1])  # (F,)
        else:
            chosen = widths(sigma, batch.acts)  # (F,)
        (given,) = read(batch, chosen)
        check_widths(given)
        self.num_filters = batch.acts.shape[1]
        self._alpha = alpha
        self.distances = _squared_distances(batch, chosen)  # (F, N, N)
        (finite,) = read(batch, self.distances.diagonal(dim1=1, dim2=2).sum(1))
        check_finite(finite)
        labels = batch.classes.labels  # (N,)
        same = labels[:, None] == labels[None, :]
        self._label_gram = batch.label_gram if batch.label_gram is not None else same.to(chosen)  # (N, N)
        self._label_entropy = _ops.matrix_entropy(self._label_gram[None], alpha)[0]  # ()

    def relevance(self, distances: Tensor) -> Tensor:
        """I(T; B) of kernels exp(-distances), (f, N, N) to (f,), bits."""
        kernels = torch.exp(-distances)  # (f, N, N)
        own = _ops.matrix_entropy(kernels, self._alpha)  # (f,)
        return own + self._label_entropy - _ops.matrix_entropy(kernels.mul_(self._label_gram), self._alpha)

    def relevance_with_each(self, base: Tensor, candidates: Sequence[int], sign: int = 1) -> Tensor:
        """I(T; B) of the set with squared distances ``base`` (N, N), with or without each candidate, (candidates,)."""
        candidates = list(candidates)
        step = max(1, _MATRIX_BYTES // (8 * base.numel()))
        parts = [base.new_empty(0).to(self._label_gram)]
        for first in range(0, len(candidates), step):
            some = self.distances[candidates[first : first + step]]  # (f, N, N)
            # Only a difference cancels, so that alone takes float64.
            distances = some.add_(base.to(some)) if sign > 0 else (base - some).clamp_(min=0).to(some)
            parts.append(self.relevance(distances))
        return torch.cat(parts)


def _squared_distances(batch: Batch, sigma: Tensor) -> Tensor:
    """|x_i - x_j|^2 / sigma_f^2 of every filter, (F, N, N); the diagonal is 0, or NaN for a value not finite."""
    num_samples, num_filters, _ = batch.acts.shape
    distances = sigma.new_empty(num_filters, num_samples, num_samples)
    for f in range(num_filters):
        points = batch.acts[:, f].to(sigma) / sigma[f]  # (N, D)
        # By differences: |x|^2 + |y|^2 - 2 x y would cancel.
        d = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")  # (N, N)
        distances[f] = d.square_()
    return distances


def _indices(name: str, indices: Sequence[int], num_filters: int) -> list[int]:
    """Indices of filters, each checked; TypeError and ValueError name the argument."""
    chosen = indices.tolist() if isinstance(indices, Tensor) else list(indices)
    for index in chosen:
        if not isinstance(index, int) or isinstance(index, bool):
            raise TypeError(f"{name} must hold integers, got {type(index).__name__}")
        if not 0 <= index < num_filters:
            raise ValueError(
                f"{name} must hold indices of the {num_filters} filters, 0 to {num_filters - 1}, got {index}"
            )
    if len(set(chosen)) != len(chosen):
        repeated = next(index for index in chosen if chosen.count(index) > 1)
        raise ValueError(f"{name} must hold each filter once, got {repeated} {chosen.count(repeated)} times")
    return chosen
