"""Kernel widths by alignment with the labels, one for the layer or one per filter."""
# SPDX-License-Identifier: MIT

import math
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from hrel_ext import _ops
from hrel_ext._batch import DEFAULT_LABEL_SIGMA, Batch, check_finite, positive, prepare, read, result_dtype


def kernel_width(
    acts: Tensor,
    labels: Tensor | None = None,
    *,
    label_gram: Tensor | None = None,
    per_filter: bool = False,
    low: float = 0.3,
    high: float = 10.0,
    num_widths: int = 300,
    label_sigma: float = DEFAULT_LABEL_SIGMA,
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
        label_gram: (N, N), a label kernel in the place of the labels, as for `hrel_ext.relevance`.
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
        >>> labels = torch.arange(12) % 3
        >>> acts = torch.stack((labels.float(), 10.0 * labels), 1)  # two filters that know the class
        >>> width = hrel_ext.kernel_width(acts, labels, per_filter=True)  # aligned best where classes are far apart
        >>> [round(value, 2) for value in (width / torch.tensor([1.0, 10.0])).tolist()]
        [0.27, 0.27]
    """
    low = positive("low", low)
    if not isinstance(high, Real) or isinstance(high, bool):
        raise TypeError(f"high must be a real number, got {type(high).__name__}")
    if not (low <= float(high) < math.inf):
        raise ValueError(f"high must be >= low = {low} and finite, got {high}")
    if not isinstance(num_widths, int) or isinstance(num_widths, bool):
        raise TypeError(f"num_widths must be an int, got {type(num_widths).__name__}")
    if num_widths < 1:
        raise ValueError(f"num_widths must be >= 1, got {num_widths}")
    batch = prepare(acts, labels, label_sigma, label_gram)
    return aligned_width(batch, per_filter=per_filter, low=low, high=float(high), num_widths=num_widths)


class MovingWidth:
    """Exponential moving average of kernel widths over mini-batches, as HRel keeps one for each layer while training.

        sigma_0 = w_0,   sigma_t = decay sigma_(t-1) + (1 - decay) w_t,

    where w_t is the width of mini-batch t, say of `kernel_width`, in units of the maps.

    Args:
        decay: share of the old value, in [0, 1); 0.9 is HRel's.

    Attributes:
        value: the average, of the shape, dtype and device of the first width; None before it.

    Raises:
        TypeError, ValueError: ``decay`` that is no such number.

    Source: HRel's published code, after Wickstrom et al., arXiv 1909.11396.

    Example:
        >>> average = hrel_ext.MovingWidth()
        >>> [round(average.update(torch.tensor(width)).item(), 3) for width in (2.0, 3.0, 3.0)]
        [2.0, 2.1, 2.19]
        >>> other = hrel_ext.MovingWidth()
        >>> other.load_state_dict(average.state_dict())
        >>> round(other.value.item(), 3)
        2.19
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not isinstance(decay, Real) or isinstance(decay, bool):
            raise TypeError(f"decay must be a real number, got {type(decay).__name__}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be >= 0 and < 1, got {decay}")
        self._decay = float(decay)
        self.value: Tensor | None = None

    def update(self, width: Tensor) -> Tensor:
        """Take one more width into the average.

        Args:
            width: () or (F,), floating point, > 0 and finite; always the same shape. The host waits for the device.

        Returns:
            The new average, of the same shape; later calls leave it as it is.

        Raises:
            TypeError, ValueError: a width that is no floating-point tensor, of another shape than before, or with a
            value that is not > 0 and finite. The average then stays as it was.
        """
        if not isinstance(width, Tensor) or not width.dtype.is_floating_point:
            got = width.dtype if isinstance(width, Tensor) else type(width).__name__
            raise TypeError(f"width must be a floating-point tensor, got {got}")
        if self.value is not None and width.shape != self.value.shape:
            raise ValueError(
                f"width must have the shape of the first one, {tuple(self.value.shape)}, got {tuple(width.shape)}"
            )
        width = width.detach()
        if not ((width > 0) & width.isfinite()).all():
            wrong = width[~((width > 0) & width.isfinite())]
            raise ValueError(f"width must be > 0 and finite, got {wrong[0].item()}")
        if self.value is None:
            self.value = width.clone()
        else:
            self.value = self._decay * self.value + (1 - self._decay) * width.to(self.value)
        return self.value

    def state_dict(self) -> dict[str, Tensor | float | None]:
        """The decay and the average, for a checkpoint."""
        return {"decay": self._decay, "value": self.value}

    def load_state_dict(self, state: dict[str, Tensor | float | None]) -> None:
        """Go on from what `state_dict` gave; raises as the constructor and `update` for what it cannot have given."""
        fresh = MovingWidth(state["decay"])
        if state["value"] is not None:
            fresh.update(state["value"])
        self._decay, self.value = fresh._decay, fresh.value


def aligned_width(
    batch: Batch, *, per_filter: bool, low: float = 0.3, high: float = 10.0, num_widths: int = 300
) -> Tensor:
    """``kernel_width`` of a batch that is checked already."""
    dtype, device = result_dtype(batch.acts), batch.acts.device
    if batch.acts.shape[1] == 0:  # a layer without filters: any width, and no distances to search
        return torch.ones(0 if per_filter else (), dtype=dtype, device=device)
    multiples = torch.linspace(low, high, num_widths, dtype=dtype, device=device)  # (M,)
    mean_distance, best = _search(batch, multiples, per_filter)  # (R,), (R,)
    (means,) = read(batch, mean_distance)  # (R,), on the host
    # Equal maps of ordinary size have a mean distance of 0 as well: a small one only calls for a look at the values.
    if (means < _smallest_exact(dtype)).any():
        scale = _underflow_scale(batch.acts, mean_distance, per_filter)  # (R,) or None
        if scale is not None:
            rows = scale[None, :, None] if per_filter else scale  # against (N, F, D)
            mean_distance, best = (
                x / scale for x in _search(batch._replace(acts=batch.acts * rows), multiples, per_filter)
            )
            (means,) = read(batch, mean_distance)
    if per_filter:
        check_finite(means)
    if not np.isfinite(means).all():
        value = means[~np.isfinite(means)][0].item()
        raise ValueError(f"acts must be finite with finite pairwise distances, got a mean distance of {value}")
    if not (means > 0).all():
        best = torch.where(mean_distance > 0, best, torch.ones_like(best))
    return best if per_filter else best[0]


def _search(batch: Batch, multiples: Tensor, per_filter: bool) -> tuple[Tensor, Tensor]:
    """Mean distance (R,) and the best of the widths ``multiples`` (M,) times it (R,); R = F per filter, else 1."""
    mean_distance, alignment = _ops.kernel_alignment(
        batch.acts, batch.classes.order, batch.classes.class_offsets, multiples, per_filter, batch.label_gram
    )  # (R,), (R, M)
    return mean_distance, multiples[alignment.argmax(-1)] * mean_distance  # argmax takes the first maximum


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
