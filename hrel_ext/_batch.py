"""A mini-batch of activations and labels, checked and in the form that the ops take: the rules of all arguments."""
# SPDX-License-Identifier: MIT

import math
from collections.abc import Sequence
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple, TypeGuard, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

from hrel_ext import _ops
from hrel_ext._ops import check_memory, result_dtype

_HALF = (torch.float16, torch.bfloat16)
_FLOATING = (*_HALF, torch.float32, torch.float64)
_SHAPES = "(N, F), (N, F, L), (N, F, H, W) or (N, F, T, H, W)"
SIGMA_RULE = 'sigma must be a positive number, a tensor of shape (F,) or (), None, "layer" or "filter"'
LABEL_SIGMA = 0.1  # the default

# Rounding of an estimate, in bits: what is closer than that counts as equal, by the dtype of the results.
RESOLUTION_BITS = {torch.float32: 2e-5, torch.float64: 1e-10}

# Off-class elements of the label kernel below it change no entropy by more than N times this, so they count as 0.
NEGLIGIBLE_LABEL_KERNEL = 1e-20

# What rounding may do to a semidefinite matrix L with unit diagonal, in eps of its dtype: to L_ij - L_ji, and to an
# eigenvalue 0 of L / N.
ROUNDING = 100


class Classes:
    """The labels of a mini-batch in the form of the ops, on one device, whatever is scored with them.

    Sorted once, when that is first wanted. Whether they are >= 0 is left to `read`.

    Args:
        labels: (N,), integers, N >= 1.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value.
    """

    def __init__(self, labels: Tensor) -> None:
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
        dtype = labels.dtype
        if dtype != torch.int64 and (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool):
            raise TypeError(f"labels must have an integer dtype, got {labels.dtype}")
        if labels.dim() != 1:
            raise ValueError(f"labels must have shape (N,), got {tuple(labels.shape)}")
        if len(labels) == 0:
            raise ValueError("labels must hold at least one sample (N >= 1), got shape (0,)")
        self.labels = labels if dtype == torch.int64 else labels.long()  # (N,) int64; long takes its time for int64 too

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.sort_by_class(self.labels)

    @property
    def order(self) -> Tensor:
        """(N,) int64, the samples sorted by class."""
        return self._sorted[0]

    @property
    def class_offsets(self) -> Tensor:
        """(N + 1,) int64, unused entries N, so that their number is not read back."""
        return self._sorted[1]

    @property
    def smallest(self) -> Tensor:
        """(1,) int64, the smallest label."""
        return self._sorted[2]


class Batch(NamedTuple):
    """Operands shared by the ops, all on one device. Nothing of them is read back but by `read`."""

    acts: Tensor  # (N, F, D), a view where the strides allow one; on the CPU no half precision
    classes: Classes
    label_gram: Tensor | None  # (N, N) label kernel, or None where it is 1 within a class and 0 across
    across: float | None  # the label kernel across classes, 0 for no label_gram; None where it is not one of classes

    @property
    def on_host(self) -> bool:
        """Whether one native call takes all of it: filters on the CPU, labels 1 within a class and 0 across."""
        return self.acts.is_cpu and self.label_gram is None and self.acts.shape[1] > 0


def positive(name: str, value: object) -> float:
    """``value`` as a float; TypeError unless it is a real number, ValueError unless it is > 0 and finite."""
    if not is_real(value):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}")
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be > 0 and finite, got {value}")
    return number


def is_real(value: object) -> TypeGuard[Real]:
    """Whether ``value`` is a real number of any kind, bool excepted."""
    return isinstance(value, float) or (isinstance(value, Real) and not isinstance(value, bool))  # float: no ABC


def prepare(
    acts: Tensor, labels: Tensor | Classes | None, label_sigma: float = LABEL_SIGMA, label_gram: Tensor | None = None
) -> Batch:
    """Check a mini-batch and bring it into the form of the ops, once for all filters.

    With labels nothing waits for the device; a label_gram is read to be checked.

    Args:
        acts: (N, F, *spatial), floating point, any strides; half precision is converted to float32 on the CPU and
            left to the kernels on CUDA.
        labels: (N,), integers >= 0 on the device of ``acts``, or `Classes` of them; or None.
        label_sigma: width of the Gaussian kernel of the one-hot labels, whose classes are sqrt(2) apart.
        label_gram: (N, N), a semidefinite label kernel in the place of ``labels``, as ``relevance`` takes it; or None.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value. Rules about the values of ``acts`` and
        ``labels`` are left to `read`, `check_widths` and `check_finite`.
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
    if 0 in acts.shape[2:]:
        raise ValueError(f"acts must hold at least one value per map, got shape {tuple(acts.shape)}")
    if (labels is None) == (label_gram is None):
        got = "neither" if labels is None else "both"
        raise TypeError(f"labels or label_gram must be given, and not both, got {got}")
    maps = flatten_maps(acts.detach() if acts.requires_grad else acts)  # (N, F, D)
    if maps.dtype in _HALF and not maps.is_cuda:
        maps = maps.float()
    if label_gram is not None:
        if label_sigma != LABEL_SIGMA:
            raise ValueError(f"label_sigma is the width of a kernel of labels, got {label_sigma} with a label_gram")
        return _batch_of_gram(maps, label_gram)

    given = labels.labels if isinstance(labels, Classes) else labels
    if isinstance(given, Tensor) and given.shape != acts.shape[:1]:
        raise ValueError(
            f"labels must have shape (N,) = ({acts.shape[0]},) to match acts of shape {tuple(acts.shape)}, "
            f"got {tuple(given.shape)}"
        )
    if isinstance(given, Tensor) and given.device != acts.device:
        raise ValueError(f"labels must be on the device of acts, {acts.device}, got {given.device}")
    classes = labels if isinstance(labels, Classes) else Classes(cast(Tensor, labels))  # not None, see above
    across = math.exp(-2 / label_sigma**2) if label_sigma > 0.01 else 0.0
    if across <= NEGLIGIBLE_LABEL_KERNEL:
        return Batch(maps, classes, None, 0.0)
    check_memory(f"acts of N = {len(maps)} samples", len(maps) ** 2 * result_dtype(acts).itemsize, maps.device)
    same = same_class(classes.labels)  # (N, N)
    return Batch(maps, classes, torch.full_like(same, across, dtype=result_dtype(acts)).masked_fill_(same, 1), across)


def flatten_maps(acts: Tensor) -> Tensor:
    """(N, F, *spatial) to (N, F, D), a view where the strides allow one."""
    return acts.flatten(2) if acts.dim() > 2 else acts[:, :, None]


def same_class(labels: Tensor) -> Tensor:
    """Which pairs of samples share a label: (N,) to (N, N), bool."""
    return labels[:, None] == labels[None, :]


def _normalise(label_gram: Tensor, acts: Tensor) -> Tensor:
    """A label kernel of the caller, checked and with unit diagonal: L_ij / sqrt(L_ii L_jj), (N, N) float64.

    Elements that are negligible beside the diagonal become 0. Half precision is refused: its rounding makes eigenvalues
    negative that are not.

    Args:
        label_gram: (N, N), float32 or float64, positive semidefinite.
        acts: (N, F, D), whose N and device it must have.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value.

    Source: Sanchez Giraldo, Rao, Principe, doi 10.1109/TIT.2014.2370058.
    """
    if not isinstance(label_gram, Tensor):
        raise TypeError(f"label_gram must be a torch.Tensor, got {type(label_gram).__name__}")
    if label_gram.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"label_gram must be float32 or float64, got {label_gram.dtype}")
    n = len(acts)
    if label_gram.shape != (n, n):
        raise ValueError(
            f"label_gram must have shape (N, N) = ({n}, {n}) to match acts of shape (N, F, ...), "
            f"got {tuple(label_gram.shape)}"
        )
    if label_gram.device != acts.device:
        raise ValueError(f"label_gram must be on the device of acts, {acts.device}, got {label_gram.device}")
    given = label_gram.detach().double()  # (N, N)
    diagonal = given.diagonal()  # (N,)
    right = (diagonal > 0) & diagonal.isfinite()  # (N,)
    if not right.all():
        i = int(right.int().argmin())
        raise ValueError(f"label_gram must have a diagonal > 0 and finite, got {diagonal[i].item()} for sample {i}")
    scaled = given / diagonal.max()  # so that no product below leaves the range of float64
    kernel = scaled / (scaled.diagonal()[:, None] * scaled.diagonal()[None, :]).sqrt()  # (N, N)
    if not kernel.isfinite().all():
        i, j = (~kernel.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"label_gram must be finite, also with unit diagonal, got {given[i, j].item()} at ({i}, {j})")
    asymmetry = (kernel - kernel.mT).abs()  # (N, N)
    if asymmetry.max() > ROUNDING * torch.finfo(label_gram.dtype).eps:
        i, j = divmod(int(asymmetry.argmax()), n)
        raise ValueError(
            f"label_gram must be symmetric, got {given[i, j].item()} at ({i}, {j}) "
            f"and {given[j, i].item()} at ({j}, {i})"
        )
    return ((kernel + kernel.mT) / 2).masked_fill_(kernel.abs() <= NEGLIGIBLE_LABEL_KERNEL, 0)


def _batch_of_gram(maps: Tensor, label_gram: Tensor) -> Batch:
    """The batch of maps (N, F, D) and a label kernel (N, N), by classes where it is 1 within them and 0 across.

    The kernel must be positive semidefinite; see `_normalise` for what is let pass.
    """
    kernel = _normalise(label_gram, maps)  # (N, N)
    labels = (kernel == 1).int().argmax(1)  # (N,), the first sample that is like it
    if torch.equal(same_class(labels).to(kernel), kernel):
        return Batch(maps, Classes(labels), None, 0.0)
    smallest = torch.linalg.eigvalsh(kernel / len(kernel))[0].item()
    if smallest < -ROUNDING * torch.finfo(label_gram.dtype).eps:
        raise ValueError(
            f"label_gram must be positive semidefinite, got {smallest:.3g} as the smallest eigenvalue of L / N"
        )
    return Batch(maps, Classes(torch.zeros_like(labels)), kernel.to(result_dtype(maps)), None)


def read(batch: Batch, *tensors: Tensor) -> list[list[Any]]:
    """The elements of contiguous tensors (n,): all copied to the host at once, so that it waits for the device once.

    Raises:
        ValueError: for a label < 0, which comes along for the check.
    """
    tensors = (*tensors, batch.classes.smallest)
    on_host = [tensor.tolist() for tensor in (tensors if batch.acts.is_cpu else _copy(tensors))]
    (smallest,) = on_host.pop()
    if smallest < 0:
        raise ValueError(f"labels must be class ids >= 0, got {smallest}")
    return on_host


def _copy(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    # A single element counts as contiguous with any stride, but as bytes only with 1.
    parts = [tensor.as_strided(tensor.shape, (1,)).view(torch.uint8) for tensor in tensors]
    together = torch.cat(parts).cpu().numpy()
    arrays, start = [], 0
    for tensor in tensors:
        end = start + tensor.nbytes
        arrays.append(together[start:end].view(str(tensor.dtype).removeprefix("torch.")))
        start = end
    return arrays


def widths(sigma: float | Tensor, acts: Tensor) -> Tensor:
    """The widths (F,) of a number or of a tensor, (F,) or (), as the ops take them, on the device of acts (N, F, D).

    Raises:
        TypeError, ValueError: unless the type, the shape and a number are right; the values of a tensor are left to
        `check_widths`.
    """
    num_filters = acts.shape[1]
    if not isinstance(sigma, Tensor):
        if not is_real(sigma):
            raise TypeError(f"{SIGMA_RULE}, got {type(sigma).__name__}")
        return acts.new_full((num_filters,), positive("sigma", sigma), dtype=result_dtype(acts))
    if not sigma.dtype.is_floating_point:
        raise TypeError(f"sigma must be floating point, got {sigma.dtype}")
    if sigma.shape not in ((num_filters,), ()):
        raise ValueError(f"sigma must have shape (F,) = ({num_filters},) or (), got {tuple(sigma.shape)}")
    if sigma.device != acts.device:
        raise ValueError(f"sigma must be on the device of acts, {acts.device}, got {sigma.device}")
    sigma = sigma.detach().to(result_dtype(acts))
    return sigma.contiguous() if sigma.dim() else sigma.repeat(num_filters)


def check_widths(sigma: Sequence[float]) -> None:
    """Raise ValueError for the lowest filter whose width, of (F,), is not > 0 and finite."""
    if math.isfinite(sum(sigma)) and min(sigma, default=1.0) > 0:  # all of them, and an overflow is looked at
        return
    for f, width in enumerate(sigma):
        if not 0 < width < math.inf:
            raise ValueError(f"sigma must be > 0 and finite for every filter, got {width} for filter {f}")


def check_finite(values: Sequence[float]) -> None:
    """Raise ValueError for the lowest filter whose result (F,) is NaN, the mark of a value in it that is not finite."""
    if math.isnan(sum(values)):  # of entropies or distances, where no two infinities cancel
        f = next(f for f, value in enumerate(values) if math.isnan(value))
        raise ValueError(f"acts must be finite, filter {f} holds NaN or Inf")
