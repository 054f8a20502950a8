"""The ops ``hrel_ext::relevance`` and ``hrel_ext::kernel_alignment``: checks, allocation, calls of the native module.

Operands common to both: acts (N, F, D), any strides; order (N,) int64, sorted by class; class_offsets
(N + 1,) int64, class c being ``order[class_offsets[c]:class_offsets[c + 1]]`` and unused entries N; label_gram (N, N)
or None, a label kernel with unit diagonal in the order of the samples, which takes the place of the classes.
"""
# SPDX-License-Identifier: MIT

import warnings
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from hrel_ext import _rational, reference

try:
    from hrel_ext import _C
except ImportError as error:
    raise ImportError(
        "hrel_ext is not built: its native module hrel_ext._C is missing or does not load; "
        "run `pip install .` in the source tree (`pip install -e .` to develop)"
    ) from error

_KERNELS = {
    torch.float32: (_C.relevance_cpu_float32, _C.kernel_alignment_cpu_float32),
    torch.float64: (_C.relevance_cpu_float64, _C.kernel_alignment_cpu_float64),
}
_warned: set[str] = set()


def build_info() -> dict[str, Any]:
    """What was built and what runs here.

    Returns:
        ``version``; ``isa_level`` in use on this processor ("x86-64", "x86-64-v3", "x86-64-v4") and
        ``isa_levels_built``; ``cuda``, whether CUDA kernels were built, and ``cuda_architectures``, for which;
        ``compiler``.
    """
    architectures = [a for a in _C.cuda_architectures().split(";") if a]
    return {
        "version": version("hrel_ext"),
        "isa_level": _C.isa_level(),
        "isa_levels_built": _C.isa_levels_built(),
        "cuda": bool(architectures),
        "cuda_architectures": architectures,
        "compiler": _C.compiler,
    }


def _check(acts: Tensor, order: Tensor, class_offsets: Tensor, label_gram: Tensor | None, **others: Tensor) -> None:
    """Raise ValueError unless the operands have the shapes, dtypes and device of the module's docstring."""
    if acts.dim() != 3 or acts.dtype not in _KERNELS:
        raise ValueError(f"acts must be (N, F, D) of float32 or float64, got {tuple(acts.shape)} of {acts.dtype}")
    num_samples = acts.shape[0]
    expected = {"order": (order, (num_samples,), torch.int64)}
    expected["class_offsets"] = (class_offsets, (num_samples + 1,), torch.int64)
    for name, tensor in others.items():
        expected[name] = (tensor, (acts.shape[1],) if name == "sigma" else (tensor.numel(),), acts.dtype)
    if label_gram is not None:
        expected["label_gram"] = (label_gram, (num_samples, num_samples), acts.dtype)
    for name, (tensor, shape, dtype) in expected.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != acts.device:
            raise ValueError(
                f"{name} must be {shape} of {dtype} on {acts.device}, got {tuple(tensor.shape)} of {tensor.dtype} "
                f"on {tensor.device}"
            )


def _operands(acts: Tensor, order: Tensor, class_offsets: Tensor, label_gram: Tensor | None) -> dict[str, Any]:
    """Addresses, extents and strides. The caller keeps the tensors alive during the call."""
    return {
        "acts_ptr": acts.data_ptr(),
        "acts_shape": tuple(acts.shape),
        "acts_strides": acts.stride(),
        "order_ptr": order.data_ptr(),
        "class_offsets_ptr": class_offsets.data_ptr(),
        "label_gram_ptr": 0 if label_gram is None else label_gram.data_ptr(),
        "num_threads": torch.get_num_threads(),
    }


def _sample_order(order: Tensor, label_gram: Tensor | None) -> Tensor:
    """A label kernel refers to the samples as they stand, so nothing is sorted. Returns (N,), contiguous."""
    return order.contiguous() if label_gram is None else torch.arange(len(order))


def _fall_back(acts: Tensor, order: Tensor, class_offsets: Tensor, label_gram: Tensor | None) -> Tensor:
    """Warn, once, that the reference computes on the device of ``acts``; returns the label kernel (N, N) it takes."""
    if acts.device.type not in _warned:
        _warned.add(acts.device.type)
        warnings.warn(
            "this build of hrel_ext holds no CUDA kernels, and this version has none to build: hrel_ext.reference "
            "computes on the device instead, by eigenvalues; the compiled kernels take CPU tensors",
            RuntimeWarning,
            stacklevel=3,
        )
    if label_gram is not None:
        return label_gram
    positions = torch.arange(len(order), device=order.device)  # (N,)
    class_of_position = torch.searchsorted(class_offsets, positions, right=True)  # (N,)
    labels = torch.empty_like(order).scatter_(0, order, class_of_position)  # (N,)
    return (labels[:, None] == labels[None, :]).to(acts.dtype)


@torch.library.custom_op("hrel_ext::relevance", mutates_args=(), device_types="cpu")
def relevance(
    acts: Tensor, order: Tensor, class_offsets: Tensor, sigma: Tensor, alpha: float, label_gram: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S(A_f) and S(A_f, B) in bits, (F,) each, of the dtype of ``acts``; NaN for a filter with a value not finite."""
    _check(acts, order, class_offsets, label_gram, sigma=sigma)
    entropy, joint_entropy = torch.empty_like(sigma), torch.empty_like(sigma)  # (F,), (F,)
    if acts.shape[1] == 0:
        return entropy, joint_entropy
    order, class_offsets, sigma = _sample_order(order, label_gram), class_offsets.contiguous(), sigma.contiguous()
    label_gram = None if label_gram is None else label_gram.contiguous()
    fit = _rational.fit(alpha, len(order)) if acts.dtype == torch.float32 else None
    _KERNELS[acts.dtype][0](
        **_operands(acts, order, class_offsets, label_gram),
        sigma_ptr=sigma.data_ptr(),
        alpha=alpha,
        rational=fit and _C.Rational(powers=fit.powers, poles=_rational.POLES.tolist(), weights=fit.weights),
        entropy_ptr=entropy.data_ptr(),
        joint_entropy_ptr=joint_entropy.data_ptr(),
    )
    return entropy, joint_entropy


@relevance.register_kernel("cuda")
def _(acts, order, class_offsets, sigma, alpha, label_gram):
    _check(acts, order, class_offsets, label_gram, sigma=sigma)
    return reference.entropies(acts, _fall_back(acts, order, class_offsets, label_gram), sigma, alpha)


@relevance.register_fake
def _(acts, order, class_offsets, sigma, alpha, label_gram):
    return torch.empty_like(sigma), torch.empty_like(sigma)


@torch.library.custom_op("hrel_ext::kernel_alignment", mutates_args=(), device_types="cpu")
def kernel_alignment(
    acts: Tensor,
    order: Tensor,
    class_offsets: Tensor,
    multiples: Tensor,
    per_filter: bool,
    label_gram: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Mean distance (R,) and alignment (R, M) for widths ``multiples`` (M,) times it; R = F per filter, else 1."""
    _check(acts, order, class_offsets, label_gram, multiples=multiples)
    mean_distance, alignment = _empty_alignment(acts, multiples, per_filter)
    if acts.shape[1] == 0:
        return mean_distance.zero_(), alignment.zero_()
    order, class_offsets = _sample_order(order, label_gram), class_offsets.contiguous()
    label_gram, multiples = None if label_gram is None else label_gram.contiguous(), multiples.contiguous()
    _KERNELS[acts.dtype][1](
        **_operands(acts, order, class_offsets, label_gram),
        multiples_ptr=multiples.data_ptr(),
        num_widths=len(multiples),
        per_filter=per_filter,
        mean_distance_ptr=mean_distance.data_ptr(),
        alignment_ptr=alignment.data_ptr(),
    )
    return mean_distance, alignment


@kernel_alignment.register_kernel("cuda")
def _(acts, order, class_offsets, multiples, per_filter, label_gram):
    _check(acts, order, class_offsets, label_gram, multiples=multiples)
    return reference.alignments(acts, _fall_back(acts, order, class_offsets, label_gram), multiples, per_filter)


def _empty_alignment(acts: Tensor, multiples: Tensor, per_filter: bool) -> tuple[Tensor, Tensor]:
    rows = acts.shape[1] if per_filter else 1
    return acts.new_empty(rows), acts.new_empty(rows, len(multiples))


@kernel_alignment.register_fake
def _(acts, order, class_offsets, multiples, per_filter, label_gram):
    return _empty_alignment(acts, multiples, per_filter)
