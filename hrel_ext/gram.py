"""Gaussian Gram matrices of samples, in the conventions of the field, and widths read off the distances.

K_ij = exp(-|x_i - x_j|^2 / (c sigma^2)), with c = 1 for "hrel" and c = 2 for "yu".
"""
# SPDX-License-Identifier: MIT

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrel_ext._batch import is_real, positive
from hrel_ext._ops import check_memory, result_dtype
from hrel_ext.width import kernel_width

_SIGMA_RULE = 'sigma must be a positive number, a tensor, "aligned", "mean" or "median"'


class Convention(NamedTuple):
    """How one school writes the Gaussian kernel, and the order of the entropy that goes with it.

        K_ij = exp(-|x_i - x_j|^2 / (factor sigma^2)),   sigma_other = sigma sqrt(factor / factor_other)

    The presets are in ``CONVENTIONS``: "hrel" (factor 1, alpha 1: HRel and Wickstrom, as in their code) and "yu"
    (factor 2, alpha 1.01: Sanchez Giraldo, Yu). So sigma_hrel = sqrt(2) sigma_yu gives the same matrix. The functions
    of Gram matrices take alpha = 1.01 unless told; pass ``alpha=CONVENTIONS["hrel"].alpha`` for the numbers of HRel.
    Widths are in the units of the samples.

    Source: HRel, doi 10.1016/j.neunet.2021.12.017, and arXiv 1909.11396 (factor 1); Sanchez Giraldo, Rao, Principe,
    doi 10.1109/TIT.2014.2370058, and Yu et al., doi 10.1109/TPAMI.2019.2932976 (factor 2).

    Example:
        >>> hrel_ext.CONVENTIONS["yu"]
        Convention(factor=2.0, alpha=1.01)
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> yu = hrel_ext.gram(x, sigma=1.0, convention="yu")
        >>> torch.allclose(yu, hrel_ext.gram(x, sigma=2**0.5, convention="hrel"))
        True
    """

    factor: float  # of sigma^2
    alpha: float  # order of the entropy


CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {"hrel": Convention(factor=1.0, alpha=1.0), "yu": Convention(factor=2.0, alpha=1.01)}
)


def gram(x: Tensor, *, sigma: float | Tensor | str, convention: str = "hrel", labels: Tensor | None = None) -> Tensor:
    """Gaussian Gram matrix of N samples, or of every item of a batch of sample sets.

        "hrel":  K_ij = exp(-|x_i - x_j|^2 / sigma^2)          HRel, Wickstrom
        "yu":    K_ij = exp(-|x_i - x_j|^2 / (2 sigma^2))      Sanchez Giraldo, Yu;   sigma_hrel = sqrt(2) sigma_yu

    Distances are sums of squared differences in float64, so that neither near duplicates nor a common offset cost
    digits. K is symmetric and its diagonal is 1, both exactly. Values are checked, for which the host waits for the
    device.

    Args:
        x: (..., N, D), N and D >= 1, floating point, any strides and device; half precision is computed as float32.
        sigma: width > 0 in the units of ``x``, a number or a tensor that broadcasts to the leading dimensions; or a
            rule for every item of the batch: "aligned", the width of ``kernel_width``, which gives the same K in either
            convention; "mean" or "median", the `mean_distance` or `median_distance`, taken as sigma of the convention,
            and 1 where all samples are equal, as every width then gives the same K.
        convention: "hrel" or "yu", a key of ``CONVENTIONS``.
        labels: (N,), integer class ids >= 0; for "aligned", and for it alone.

    Returns:
        (..., N, N), without unit, in (0, 1] up to underflow; float64 for float64 ``x``, else float32. Differentiable in
        ``x`` and in a tensor ``sigma``, any number of times, also where samples coincide; a width by a rule is a
        constant.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also where a value of ``x`` is not finite.

    Source: see `Convention`.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> [round(k, 4) for k in hrel_ext.gram(x, sigma=2.0)[0].tolist()]  # 1, exp(-1/4), exp(-9/4)
        [1.0, 0.7788, 0.1054]
        >>> hrel_ext.gram(torch.zeros(5, 3, 2), sigma="mean").shape
        torch.Size([5, 3, 3])
    """
    x = _samples(x)
    if not isinstance(convention, str) or convention not in CONVENTIONS:
        names = " or ".join(f'"{name}"' for name in CONVENTIONS)
        raise ValueError(f"convention must be {names}, got {convention!r}")
    factor = CONVENTIONS[convention].factor
    if labels is not None and (isinstance(sigma, Tensor) or sigma != "aligned"):
        raise ValueError('labels are for sigma="aligned" alone, got labels with another sigma')
    width = _widths(x, sigma, factor, labels)[..., None, None]  # (..., 1, 1)
    # A power of two brings the width into [1/2, 1), without rounding: no square overflows or vanishes that matters.
    power = torch.frexp(width.detach()).mantissa / width.detach()  # (..., 1, 1)
    scaled = x.double() * power  # (..., N, D)
    if not scaled.isfinite().all():
        raise ValueError("x must be finite in units of sigma, got a ratio x / sigma beyond the range of float64")
    squared = _SquaredDistances.apply(scaled)  # (..., N, N)
    return torch.exp(-squared / (factor * (width * power) ** 2)).to(x.dtype)


def mean_distance(x: Tensor) -> Tensor:
    """Mean distance between two different samples: a width by rule of thumb.

        mean over i < j of |x_i - x_j|

    over the N (N - 1) / 2 pairs. ``kernel_width`` counts its widths in means over all N^2 pairs, the zeros of the
    diagonal included, as HRel does: these are smaller, by the factor (N - 1) / N.

    Args:
        x: (..., N, D), N and D >= 1, floating point, any strides and device.

    Returns:
        (...), in the units of ``x``; float64 for float64 ``x``, else float32. 0 for N = 1. Not differentiable.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also where a value of ``x`` is not finite.

    Source: HRel's published code and arXiv 1909.11396, which search around this mean.

    Example:
        >>> round(hrel_ext.mean_distance(torch.tensor([[0.0], [1.0], [5.0]])).item(), 4)  # of 1, 4 and 5
        3.3333
    """
    x = _samples(x)
    distances = _pair_distances(x)  # (..., P)
    return distances.sum(-1).div(max(1, distances.shape[-1])).to(x.dtype)


def median_distance(x: Tensor) -> Tensor:
    """Median distance between two different samples: a width by rule of thumb that far outliers do not move.

        median over i < j of |x_i - x_j|

    over the N (N - 1) / 2 pairs; of an even number of them the lower of the two in the middle.

    Args:
        x: (..., N, D), N and D >= 1, floating point, any strides and device.

    Returns:
        (...), in the units of ``x``; float64 for float64 ``x``, else float32. 0 for N = 1. Not differentiable.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also where a value of ``x`` is not finite.

    Source: Gretton et al., A kernel two-sample test, JMLR 13 (2012), section 8.

    Example:
        >>> hrel_ext.median_distance(torch.tensor([[0.0], [1.0], [5.0]])).item()  # of 1, 4 and 5
        4.0
    """
    x = _samples(x)
    distances = _pair_distances(x)  # (..., P)
    return (distances.median(-1).values if distances.shape[-1] else distances.sum(-1)).to(x.dtype)


def _samples(x: Tensor) -> Tensor:
    """``x`` (..., N, D) checked, float32 or float64."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"x must be floating point, got {x.dtype}")
    if x.dim() < 2 or 0 in x.shape[-2:]:
        raise ValueError(f"x must have shape (..., N, D) with N >= 1 and D >= 1, got {tuple(x.shape)}")
    check_memory(f"x of shape {tuple(x.shape)}", math.prod(x.shape[:-1]) * x.shape[-2] * 8, x.device)  # float64
    finite = x.detach().isfinite()
    if not finite.all():
        where = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(f"x must be finite, got {x[where].item()} at {where}")
    return x.to(result_dtype(x))


def _widths(x: Tensor, sigma: float | Tensor | str, factor: float, labels: Tensor | None) -> Tensor:
    """The widths of a number, a tensor or a rule, float64, that broadcast to the leading dimensions of x."""
    batch = x.shape[:-2]
    if isinstance(sigma, str):
        return _widths_by_rule(x.detach(), sigma, factor, labels).double()
    if not isinstance(sigma, Tensor):
        if not is_real(sigma):
            raise TypeError(f"{_SIGMA_RULE}, got {type(sigma).__name__}")
        return torch.tensor(positive("sigma", sigma), dtype=torch.float64, device=x.device)
    if not sigma.dtype.is_floating_point:
        raise TypeError(f"sigma must be floating point, got {sigma.dtype}")
    if sigma.device != x.device:
        raise ValueError(f"sigma must be on the device of x, {x.device}, got {sigma.device}")
    if sigma.dim() > len(batch) or any(s not in (1, b) for s, b in zip(sigma.shape[::-1], batch[::-1], strict=False)):
        raise ValueError(
            f"sigma must broadcast to the leading dimensions {tuple(batch)} of x {tuple(x.shape)}, "
            f"got {tuple(sigma.shape)}"
        )
    wrong = sigma.detach()[~((sigma > 0) & sigma.isfinite())]
    if len(wrong):
        raise ValueError(f"sigma must be > 0 and finite, got {wrong[0].item()}")
    return sigma.double()


def _widths_by_rule(x: Tensor, rule: str, factor: float, labels: Tensor | None) -> Tensor:
    """One width for every item of the batch, (...)."""
    if rule == "aligned":
        if labels is None:
            raise ValueError('labels are needed for sigma="aligned", got None')
        if isinstance(labels, Tensor) and labels.shape != x.shape[-2:-1]:
            raise ValueError(
                f"labels must have shape (N,) = ({x.shape[-2]},) to match x {tuple(x.shape)}, got {tuple(labels.shape)}"
            )
        one_a_filter = x.reshape(-1, *x.shape[-2:]).transpose(0, 1)  # (N, B, D)
        return kernel_width(one_a_filter, labels, per_filter=True).double().reshape(x.shape[:-2]) / factor**0.5
    if rule not in ("mean", "median"):
        raise ValueError(f"{_SIGMA_RULE}, got {rule!r}")
    width = mean_distance(x) if rule == "mean" else median_distance(x)  # (...)
    differ = (x != x[..., :1, :]).any(-1).any(-1)  # (...)
    if ((width == 0) & differ).any():
        raise ValueError(f'sigma="{rule}" must find a {rule} distance > 0 between different samples, got 0')
    return torch.where(differ, width, 1)


@torch.no_grad()
def _pair_distances(x: Tensor) -> Tensor:
    """|x_i - x_j| over i < j: (..., N, D) to (..., P), float64."""
    x = x.double()
    largest = x.abs().amax((-2, -1), keepdim=True)  # (..., 1, 1)
    largest = torch.where(largest > 0, largest, 1)
    power = torch.frexp(largest).mantissa / largest  # 2^-k, for the range of the squares
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1, device=x.device)  # (P,), (P,)
    return _distances(x * power)[..., i, j] / power[..., 0]


def _distances(points: Tensor) -> Tensor:
    """|x_i - x_j| by differences, (..., N, D) to (..., N, N): |x|^2 + |y|^2 - 2 x y would cancel."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


class _SquaredDistances(torch.autograd.Function):
    """|x_i - x_j|^2, (..., N, D) to (..., N, N), without a square root on the way back and in N D memory."""

    @staticmethod
    def forward(ctx: Any, points: Tensor) -> Tensor:
        ctx.save_for_backward(points)
        return _distances(points).square()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        # d/dx_i = 2 sum_j (W_ij + W_ji) (x_i - x_j): a Laplacian, to which only differences matter, hence the centring.
        (points,) = ctx.saved_tensors
        centred = points - points.mean(-2, keepdim=True)  # (..., N, D)
        both = slope + slope.mT  # (..., N, N)
        return 2 * (both.sum(-1, keepdim=True) * centred - both @ centred)
