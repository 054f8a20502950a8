"""A mini-batch of activations and labels, checked and in the form that the ops take: the rules of all arguments."""
# SPDX-License-Identifier: MIT

import math
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHAPES = "(N, F), (N, F, L), (N, F, H, W) or (N, F, T, H, W)"
SIGMA_RULE = 'sigma must be a positive number, a tensor of shape (F,), None, "layer" or "filter"'

DEFAULT_LABEL_SIGMA = 0.1  # HRel's

# Rounding of an estimate, in bits: what is closer than that counts as equal, by the dtype of the results.
RESOLUTION_BITS = {torch.float32: 2e-5, torch.float64: 1e-10}

# Off-class elements of the label kernel below it change no entropy by more than N times this, so they count as 0.
NEGLIGIBLE_LABEL_KERNEL = 1e-20


class Classes(NamedTuple):
    """The labels of a mini-batch in the form of the ops, on one device, whatever is scored with them."""

    labels: Tensor  # (N,) int64
    order: Tensor  # (N,) int64, the samples sorted by class
    class_offsets: Tensor  # (N + 1,) int64, unused entries N, so that their number is not read back
    smallest: Tensor  # (1,) int64, the smallest label


class Batch(NamedTuple):
    """Operands shared by the ops, all on one device. Nothing of them is read back but by `read`."""

    acts: Tensor  # (N, F, D), a view where the strides allow one; on the CPU no half precision
    classes: Classes
    label_gram: Tensor | None  # (N, N) label kernel, or None where it is 1 within a class and 0 across
    across: float | None  # the label kernel across classes, 0 where label_gram is None; None where there are no classes


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


def sort_by_class(labels: Tensor) -> Classes:
    """Sort labels (N,), integers, once for all that is scored with them; whether they are >= 0 is left to `read`.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise TypeError(f"labels must have an integer dtype, got {labels.dtype}")
    if labels.dim() != 1:
        raise ValueError(f"labels must have shape (N,), got {tuple(labels.shape)}")
    labels = labels.long()
    num_samples = len(labels)
    in_order, order = labels.sort(stable=True)  # (N,), (N,)
    # Only the first sample of a class keeps its position. Every step is a launch on CUDA, so there are few.
    positions = torch.arange(num_samples + 1, device=labels.device)  # (N + 1,)
    positions[1:num_samples].masked_fill_(in_order[1:] == in_order[:-1], num_samples)
    return Classes(labels, order, positions.sort().values, in_order[:1])


def prepare(
    acts: Tensor, labels: Tensor | Classes | None, label_sigma: float, label_gram: Tensor | None = None
) -> Batch:
    """Check a mini-batch and bring it into the form of the ops, once for all filters, without a wait for the device.

    Args:
        acts: (N, F, *spatial), floating point, any strides; half precision is converted to float32 on the CPU and
            left to the kernels on CUDA.
        labels: (N,), integers >= 0 on the device of ``acts``, or what `sort_by_class` made of them; None with a
            ``label_gram``.
        label_sigma: width of the Gaussian kernel of the one-hot labels, whose classes are sqrt(2) apart.
        label_gram: (N, N), a label kernel in the place of the labels; its values are looked at, so the host waits.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value. Other rules about the values of a tensor
        are left to `read`, `check_widths` and `check_finite`.
    """
    label_sigma = positive("label_sigma", label_sigma)
    if (labels is None) == (label_gram is None):
        given = "neither" if labels is None else "both"
        raise ValueError(f"labels or label_gram must be given, one of the two, got {given}")
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
    given = labels.labels if isinstance(labels, Classes) else labels
    if isinstance(given, Tensor) and given.shape != acts.shape[:1]:
        raise ValueError(
            f"labels must have shape (N,) = ({acts.shape[0]},) to match acts of shape {tuple(acts.shape)}, "
            f"got {tuple(given.shape)}"
        )
    if isinstance(given, Tensor) and given.device != acts.device:
        raise ValueError(f"labels must be on the device of acts, {acts.device}, got {given.device}")

    maps = acts.detach().flatten(2) if acts.dim() > 2 else acts.detach()[:, :, None]  # (N, F, D)
    maps = maps if maps.device.type == "cuda" else maps.to(result_dtype(maps))
    if label_gram is not None:
        if label_sigma != DEFAULT_LABEL_SIGMA:
            raise ValueError(f"label_sigma must be left at {DEFAULT_LABEL_SIGMA} with a label_gram, got {label_sigma}")
        return _prepare_label_gram(maps, label_gram)
    classes = labels if isinstance(labels, Classes) else sort_by_class(labels)
    across = math.exp(-2 / label_sigma**2) if label_sigma > 0.01 else 0.0
    if across <= NEGLIGIBLE_LABEL_KERNEL:
        return Batch(maps, classes, None, 0.0)
    same = classes.labels[:, None] == classes.labels[None, :]  # (N, N)
    label_gram = torch.full_like(same, across, dtype=result_dtype(acts)).masked_fill_(same, 1)
    return Batch(maps, classes, label_gram, across)


def _prepare_label_gram(maps: Tensor, label_gram: Tensor) -> Batch:
    """The batch of maps (N, F, D) and a label kernel (N, N), which becomes classes where it is exactly theirs."""
    num_samples = len(maps)
    if not isinstance(label_gram, Tensor):
        raise TypeError(f"label_gram must be a torch.Tensor, got {type(label_gram).__name__}")
    if not label_gram.dtype.is_floating_point:
        raise TypeError(f"label_gram must be floating point, got {label_gram.dtype}")
    if label_gram.shape != (num_samples, num_samples):
        raise ValueError(
            f"label_gram must have shape (N, N) = ({num_samples}, {num_samples}) to match acts, "
            f"got {tuple(label_gram.shape)}"
        )
    if label_gram.device != maps.device:
        raise ValueError(f"label_gram must be on the device of acts, {maps.device}, got {label_gram.device}")
    kernel = label_gram.detach().double()  # (N, N)
    if not kernel.isfinite().all():
        raise ValueError(f"label_gram must be finite, got {kernel[~kernel.isfinite()][0].item()}")
    diagonal = kernel.diagonal()  # (N,)
    if not (diagonal > 0).all():
        i = int((diagonal > 0).int().argmin())
        raise ValueError(f"label_gram must have a diagonal > 0, got {diagonal[i].item()} at {i}")
    root = diagonal.sqrt()  # (N,)
    kernel = kernel / root[:, None] / root[None, :]
    # What rounding may have made of a kernel that keeps the rules, relative to its largest element, 1.
    rounding = num_samples * torch.finfo(label_gram.dtype).eps
    if (difference := (kernel - kernel.T).abs().max().item()) > rounding:
        raise ValueError(
            f"label_gram must be symmetric, to {rounding:.1e} with a diagonal of 1, got elements {difference:.1e} apart"
        )
    kernel = (kernel + kernel.T) / 2
    kernel.fill_diagonal_(1)
    labels = (kernel == 1).int().argmax(1)  # (N,), the first sample that is the same
    if torch.equal(kernel, (labels[:, None] == labels[None, :]).double()):
        return Batch(maps, sort_by_class(labels), None, 0.0)
    smallest, *_, largest = torch.linalg.eigvalsh(kernel).tolist()
    if smallest < -rounding * largest:
        raise ValueError(f"label_gram must be positive semidefinite, got the eigenvalue {smallest:.3g}")
    return Batch(maps, sort_by_class(torch.zeros_like(labels)), kernel.to(result_dtype(maps)), None)


def read(batch: Batch, *tensors: Tensor) -> list[NDArray]:
    """Copy contiguous tensors (n,) to the host: all of them at once, so that the host waits for the device once.

    Raises:
        ValueError: for a label < 0, which comes along for the check.
    """
    tensors = (*tensors, batch.classes.smallest)
    # A single element counts as contiguous with any stride, but as bytes only with 1.
    parts = [tensor.as_strided(tensor.shape, (1,)).view(torch.uint8) for tensor in tensors]
    together = torch.cat(parts).cpu().numpy()
    arrays, start = [], 0
    for tensor in tensors:
        end = start + tensor.nbytes
        arrays.append(together[start:end].view(str(tensor.dtype).removeprefix("torch.")))
        start = end
    smallest = arrays.pop().item()
    if smallest < 0:
        raise ValueError(f"labels must be class ids >= 0, got {smallest}")
    return arrays


def widths(sigma: float | Tensor, acts: Tensor) -> Tensor:
    """The widths (F,) of a number or of a tensor (F,), as the ops take them, on the device of ``acts`` (N, F, D).

    Raises:
        TypeError, ValueError: unless the type, the shape and a number are right; the values of a tensor are left to
        `check_widths`.
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
    return sigma.detach().to(result_dtype(acts)).contiguous()


def check_widths(sigma: NDArray) -> None:
    """Raise ValueError for the lowest filter whose width, of (F,), is not > 0 and finite."""
    right = (sigma > 0) & np.isfinite(sigma)
    if not right.all():
        f = int(right.argmin())
        raise ValueError(f"sigma must be > 0 and finite for every filter, got {sigma[f].item()} for filter {f}")


def check_finite(values: NDArray) -> None:
    """Raise ValueError for the lowest filter whose result (F,) is NaN, the mark of a value in it that is not finite."""
    wrong = np.isnan(values)
    if wrong.any():
        raise ValueError(f"acts must be finite, filter {int(wrong.argmax())} holds NaN or Inf")
