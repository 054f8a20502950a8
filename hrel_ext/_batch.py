"""A mini-batch of activations and labels, checked and in the form that the ops take: the rules of all arguments."""
# SPDX-License-Identifier: MIT

import math
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHAPES = "(N, F), (N, F, L), (N, F, H, W) or (N, F, T, H, W)"
SIGMA_RULE = 'sigma must be a positive number, a tensor of shape (F,), None, "layer" or "filter"'

# Off-class elements of the label kernel below it change no entropy by more than N times this, so they count as 0.
NEGLIGIBLE_LABEL_KERNEL = 1e-20


class Batch(NamedTuple):
    """Operands shared by the ops, all on one device; C is not read back from it."""

    acts: Tensor  # (N, F, D), a view where the strides allow one; on the CPU no half precision
    order: Tensor  # (N,) int64, the samples sorted by class
    class_offsets: Tensor  # (N + 1,) int64, unused entries N
    label_gram: Tensor | None  # (N, N) label kernel, or None where it is 1 within a class and 0 across


def result_dtype(acts: Tensor) -> torch.dtype:
    """The dtype of whatever is computed from ``acts``: float64 for float64, else float32."""
    return torch.float64 if acts.dtype == torch.float64 else torch.float32


def positive(name: str, value: object) -> float:
    """``value`` as a float; TypeError unless it is a real number, ValueError unless it is > 0 and finite."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}")
    if not (0 < float(value) < math.inf):
        raise ValueError(f"{name} must be > 0 and finite, got {value}")
    return float(value)


def prepare(acts: Tensor, labels: Tensor, label_sigma: float) -> Batch:
    """Check a mini-batch and sort its labels, once for all filters.

    Args:
        acts: (N, F, *spatial), floating point, any strides; half precision is converted to float32 on the CPU and
            left to the kernels on CUDA.
        labels: (N,), integers >= 0 on the device of ``acts``.
        label_sigma: width of the Gaussian kernel of the one-hot labels, whose classes are sqrt(2) apart.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value.
    """
    label_sigma = positive("label_sigma", label_sigma)
    if not isinstance(acts, Tensor):
        raise TypeError(f"acts must be a torch.Tensor, got {type(acts).__name__}")
    if acts.dtype not in _FLOATING:
        raise TypeError(f"acts must be floating point (float16, bfloat16, float32 or float64), got {acts.dtype}")
    if not 2 <= acts.dim() <= 5:
        raise ValueError(f"acts must have shape {_SHAPES}, got {tuple(acts.shape)}")
    if acts.shape[0] == 0:
        raise ValueError(f"acts must hold at least one sample (N >= 1), got shape {tuple(acts.shape)}")
    if math.prod(acts.shape[2:]) == 0:
        raise ValueError(f"acts must hold at least one value per map, got shape {tuple(acts.shape)}")
    _check_labels(labels, acts)

    acts = acts.detach()
    maps = acts.flatten(2) if acts.dim() > 2 else acts[:, :, None]  # (N, F, D)
    maps = maps if maps.device.type == "cuda" else maps.to(result_dtype(maps))
    sorted_labels, order = labels.long().sort(stable=True)  # (N,), (N,)
    starts = torch.ones_like(order, dtype=torch.bool)  # (N,) the first sample of every class
    starts[1:] = sorted_labels[1:] != sorted_labels[:-1]
    sizes = torch.zeros_like(order).scatter_add_(0, starts.cumsum(0) - 1, torch.ones_like(order))  # (N,) 0 where unused
    class_offsets = torch.cat([order.new_zeros(1), sizes.cumsum(0)])  # (N + 1,)
    across = math.exp(-2 / label_sigma**2) if label_sigma > 0.01 else 0.0  # the kernel between two classes
    label_gram = None
    if across > NEGLIGIBLE_LABEL_KERNEL:
        same = labels[:, None] == labels[None, :]  # (N, N)
        label_gram = torch.full_like(same, across, dtype=result_dtype(acts)).masked_fill_(same, 1)
    return Batch(maps, order, class_offsets, label_gram)


def _check_labels(labels: Tensor, acts: Tensor) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise TypeError(f"labels must have an integer dtype, got {labels.dtype}")
    if labels.shape != acts.shape[:1]:
        raise ValueError(
            f"labels must have shape (N,) = ({acts.shape[0]},) to match acts of shape {tuple(acts.shape)}, "
            f"got {tuple(labels.shape)}"
        )
    if labels.device != acts.device:
        raise ValueError(f"labels must be on the device of acts, {acts.device}, got {labels.device}")
    if labels.device.type != "meta" and int(labels.min()) < 0:
        raise ValueError(f"labels must be class ids >= 0, got {int(labels.min())}")


def widths(sigma: float | Tensor, acts: Tensor) -> Tensor:
    """The widths (F,) of a number or of a tensor (F,), as the ops take them, on the device of ``acts`` (N, F, D).

    Raises:
        TypeError, ValueError: unless every width is > 0 and finite.
    """
    num_filters = acts.shape[1]
    if not isinstance(sigma, Tensor):
        if not isinstance(sigma, Real) or isinstance(sigma, bool):
            raise TypeError(f"{SIGMA_RULE}, got {type(sigma).__name__}")
        return acts.new_full((num_filters,), positive("sigma", sigma), dtype=result_dtype(acts))
    if not sigma.dtype.is_floating_point:
        raise TypeError(f"sigma must be floating point, got {sigma.dtype}")
    if sigma.shape != (num_filters,):
        raise ValueError(f"sigma must have shape (F,) = ({num_filters},), got {tuple(sigma.shape)}")
    if sigma.device != acts.device:
        raise ValueError(f"sigma must be on the device of acts, {acts.device}, got {sigma.device}")
    sigma = sigma.detach().to(result_dtype(acts))
    wrong = ~((sigma > 0) & sigma.isfinite())
    if wrong.any():
        f = int(wrong.int().argmax())
        raise ValueError(f"sigma must be > 0 and finite for every filter, got {sigma[f].item()} for filter {f}")
    return sigma


def check_finite(values: Tensor) -> None:
    """Raise ValueError for the lowest filter whose result (F,) is NaN, the mark of a value in it that is not finite."""
    wrong = values.isnan()
    if wrong.any():
        raise ValueError(f"acts must be finite, filter {int(wrong.int().argmax())} holds NaN or Inf")
