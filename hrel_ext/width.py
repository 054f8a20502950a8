"""Kernel widths by alignment with the labels, for the layer or per filter, and their moving average over batches."""
# SPDX-License-Identifier: MIT

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hrel_ext import _ops
from hrel_ext._batch import LABEL_SIGMA, Batch, check_finite, is_real, positive, prepare, read
from hrel_ext._ops import result_dtype


def kernel_width(
    acts: Tensor,
    labels: Tensor | None = None,
    *,
    label_gram: Tensor | None = None,
    per_filter: bool = False,
    low: float = 0.3,
    high: float = 10.0,
    num_widths: int = 300,
    label_sigma: float = LABEL_SIGMA,
) -> Tensor:
    """Find the width whose Gaussian kernel K is aligned best with the kernel L of the labels.

        argmax_sigma 2 log2(<K, L> / (|K| |L|)),   K_ij = exp(-|x_i - x_j|^2 / sigma^2),
        sigma in linspace(low, high, num_widths) * mean_ij |x_i - x_j|,

    the mean over all N^2 pairs. Of equal maxima the smallest width wins. Note sigma^2, not 2 sigma^2: HRel's
    convention. The width of the layer follows HRel; with one per filter nearly all filters of a network look alike
    (docs/math.md).

    Args:
        acts: (N, F, *spatial), floating point, any strides; never modified.
        labels: (N,), integer class ids >= 0 on the same device.
        label_gram: (N, N), in the place of ``labels``: any label kernel L, as for `relevance`.
        per_filter: one width per filter instead of one for the outputs of the whole layer.
        low: smallest width, in mean distances, > 0.
        high: largest width, in mean distances, >= low.
        num_widths: number of equally spaced widths; HRel's grid is 300 from 0.3 to 10.
        label_sigma: width of the kernel of the one-hot labels.

    Returns:
        () for the layer or (F,) per filter, in the units of ``acts``; float64 for float64 input, else float32. 1 where
        all maps are equal, as every width then gives the same kernel. Not differentiable.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also where a value of ``acts`` is not
        finite.

    Source: HRel's published code, after Wickstrom et al., arXiv 1909.11396.

    Example:
        >>> acts = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3, whose mean over nine pairs is 12 / 9
        >>> labels = torch.tensor([0, 0, 1])
        >>> round(hrel_ext.kernel_width(acts, labels, low=0.75, high=2.25, num_widths=3).item(), 4)  # of 1, 2, 3
        2.0
        >>> [round(width, 2) for width in hrel_ext.kernel_width(acts, labels, per_filter=True).tolist()]
        [1.57]
    """
    low = positive("low", low)
    if not is_real(high):
        raise TypeError(f"high must be a real number, got {type(high).__name__}")
    if not (low <= float(high) < math.inf):
        raise ValueError(f"high must be >= low = {low} and finite, got {high}")
    if not isinstance(num_widths, int) or isinstance(num_widths, bool):
        raise TypeError(f"num_widths must be an int, got {type(num_widths).__name__}")
    if num_widths < 1:
        raise ValueError(f"num_widths must be >= 1, got {num_widths}")
    batch = prepare(acts, labels, label_sigma, label_gram)
    return aligned_width(batch, per_filter=per_filter, low=low, high=float(high), num_widths=num_widths)


def aligned_width(
    batch: Batch, *, per_filter: bool, low: float = 0.3, high: float = 10.0, num_widths: int = 300
) -> Tensor:
    """``kernel_width`` of a batch that is checked already."""
    dtype, device = result_dtype(batch.acts), batch.acts.device
    if batch.acts.shape[1] == 0:  # a layer without filters: any width, and no distances to search
        return torch.ones(0 if per_filter else (), dtype=dtype, device=device)
    multiples = torch.linspace(low, high, num_widths, dtype=dtype, device=device)  # (M,)
    mean_distance, means, best = _search(batch, multiples, per_filter)
    # Equal maps of ordinary size have a mean distance of 0 as well: a small one only calls for a look at the values.
    if min(means) < _smallest_exact(dtype):
        scale = _underflow_scale(batch.acts, mean_distance, per_filter)  # (R,) or None
        if scale is not None:
            rows = scale[None, :, None] if per_filter else scale  # against (N, F, D)
            mean_distance, _, best = _search(batch._replace(acts=batch.acts * rows), multiples, per_filter)
            mean_distance, best = mean_distance / scale, best / scale
            means = mean_distance.tolist()
    if per_filter:
        check_finite(means)
    if not all(map(math.isfinite, means)):
        finite = batch.acts.isfinite().all(2).all(0).tolist()  # (F,)
        check_finite([0.0 if right else math.nan for right in finite])
        value = next(mean for mean in means if not math.isfinite(mean))
        raise ValueError(f"acts must be finite with finite pairwise distances, got a mean distance of {value}")
    if not min(means) > 0:
        best = torch.where(mean_distance > 0, best, torch.ones_like(best))
    return best if per_filter else best[0]


def _search(batch: Batch, multiples: Tensor, per_filter: bool) -> tuple[Tensor, list[float], Tensor]:
    """Mean distance (R,), the same on the host, and the best of the widths ``multiples`` (M,) times it (R,).

    R = F per filter, else 1.
    """
    if batch.on_host:
        proper, (mean_distance, best) = _ops.kernel_width(batch.acts, batch.classes.labels, multiples, per_filter)
        if not proper:
            read(batch)  # raises
        return mean_distance, mean_distance.tolist(), best
    mean_distance, alignment = _ops.kernel_alignment(
        batch.acts, batch.classes.order, batch.classes.class_offsets, multiples, per_filter, batch.label_gram
    )  # (R,), (R, M)
    if batch.across is None:  # with negative elements <K, L> may vanish, and rounding make it negative
        alignment = torch.where(alignment.isnan(), -torch.inf, alignment)
    best = alignment.max(-1).indices  # (R,), the first of equal maxima; argmax takes longer
    (means,) = read(batch, mean_distance)
    return mean_distance, means, multiples.index_select(0, best) * mean_distance


def _smallest_exact(dtype: torch.dtype) -> float:
    """The smallest distance whose square keeps all of its digits."""
    limits = torch.finfo(dtype)
    return (limits.tiny / limits.eps) ** 0.5


def _underflow_scale(acts: Tensor, mean_distance: Tensor, per_filter: bool) -> Tensor | None:
    """Powers of two (R,) that bring maps whose squared distances underflow near 1; None where there are none.

    Only where the values themselves are tiny can two different maps be closer than `_smallest_exact`.
    """
    limits, smallest = torch.finfo(mean_distance.dtype), _smallest_exact(mean_distance.dtype)
    largest = acts.abs().amax((0, 2) if per_filter else (0, 1, 2)).reshape(-1).to(mean_distance)  # (R,)
    affected = (mean_distance < smallest) & (largest > 0) & (largest < smallest / limits.eps)
    if not affected.any():
        return None
    exponent = torch.frexp(largest).exponent.clamp(min=round(math.log2(limits.tiny)))  # (R,)
    return torch.where(affected, torch.exp2(-exponent.to(largest)), 1)


class MovingWidth:
    """The exponential moving average of a width over mini-batches, as HRel keeps one per layer while it trains.

        sigma_t = decay sigma_(t-1) + (1 - decay) sigma*_t,   sigma_0 = sigma*_0,

    where sigma*_t is the width found on mini-batch t, say by `kernel_width`: of the layer, (), or per filter, (F,). One
    object serves one layer. Widths are in units of the activations; gradients are not followed.

    Args:
        decay: weight of the past, 0 <= decay < 1; HRel's is 0.9.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value.

    Source: HRel, doi 10.1016/j.neunet.2021.12.017, after Wickstrom et al., arXiv 1909.11396.

    Example:
        >>> moving = hrel_ext.MovingWidth()
        >>> [round(moving.update(torch.tensor(width)).item(), 4) for width in (2.0, 3.0, 3.0)]
        [2.0, 2.1, 2.19]
        >>> acts, labels = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])
        >>> sigma = moving.update(hrel_ext.kernel_width(acts, labels))
        >>> hrel_ext.relevance(acts, labels, sigma=sigma).shape
        torch.Size([1])
    """

    def __init__(self, decay: float = 0.9) -> None:
        self._decay = _checked_decay(decay)
        self._value: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """The average so far, () or (F,), in the dtype and on the device of the first width.

        Raises:
            RuntimeError: before the first `update`.
        """
        if self._value is None:
            raise RuntimeError("a MovingWidth has no value before its first update")
        return self._value

    def update(self, width: Tensor) -> Tensor:
        """Take in the width of one more mini-batch; the host waits for it, so that no wrong one stays in the average.

        Args:
            width: sigma*_t, () or (F,), floating point, > 0 and finite; in shape, dtype and device like the first.

        Returns:
            The new average, a tensor that later updates leave as it is.

        Raises:
            TypeError, ValueError: naming the argument, its rule and the value; the average is left as it was.
        """
        width = _checked_width(width)
        if self._value is None:
            self._value = width.clone()
            return self.value
        past = self._value
        if (width.shape, width.dtype, width.device) != (past.shape, past.dtype, past.device):
            raise ValueError(
                f"width must be like the first one, {tuple(past.shape)} of {past.dtype} on {past.device}, "
                f"got {tuple(width.shape)} of {width.dtype} on {width.device}"
            )
        self._value = torch.lerp(width, past, self._decay)  # equal widths stay equal to the last bit
        return self._value

    def state_dict(self) -> dict[str, float | Tensor | None]:
        """``decay`` and ``value``, which is None before the first update; for `load_state_dict` and ``torch.save``."""
        return {"decay": self._decay, "value": self._value}

    def load_state_dict(self, state: Mapping[str, float | Tensor | None]) -> None:
        """Go on from a `state_dict`, its decay included.

        Raises:
            TypeError, ValueError: naming the entry, its rule and the value; the object is left as it was.
        """
        if set(state) != {"decay", "value"}:
            raise ValueError(f"the state of a MovingWidth must hold decay and value, got {', '.join(sorted(state))}")
        value = state["value"]
        decay, value = _checked_decay(state["decay"]), None if value is None else _checked_width(value).clone()
        self._decay, self._value = decay, value


def _checked_decay(decay: object) -> float:
    if not is_real(decay):
        raise TypeError(f"decay must be a real number, got {type(decay).__name__}")
    if not 0 <= float(decay) < 1:
        raise ValueError(f"decay must be >= 0 and < 1, got {decay}")
    return float(decay)


def _checked_width(width: object) -> Tensor:
    if not isinstance(width, Tensor):
        raise TypeError(f"width must be a torch.Tensor, got {type(width).__name__}")
    if not width.dtype.is_floating_point:
        raise TypeError(f"width must be floating point, got {width.dtype}")
    if width.dim() > 1:
        raise ValueError(f"width must have shape () or (F,), got {tuple(width.shape)}")
    width = width.detach()
    wrong = width[~((width > 0) & width.isfinite())]
    if len(wrong):
        raise ValueError(f"width must be > 0 and finite, got {wrong[0].item()}")
    return width
