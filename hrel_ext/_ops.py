"""The ops ``hrel_ext::relevance``, ``permuted_joint_entropy``, ``kernel_alignment`` and ``matrix_entropy``: checks,
allocation, native calls.

``matrix_entropy`` is differentiable, by the op ``matrix_entropy_gradient`` in plain PyTorch; the others are not, and
refuse operands that require grad. No ops are `sort_by_class`, which makes order and class_offsets, and
`relevance_terms` and `kernel_width`, which take labels as they come: on the CPU, each in one native call.

Operands of the first three: acts (N, F, D), any strides, float32 or float64, on CUDA also half precision; order (N,)
int64, sorted by class; class_offsets (N + 1,) int64, class c being ``order[class_offsets[c]:class_offsets[c + 1]]`` and
unused entries N; label_gram (N, N) or None, a label kernel with unit diagonal in the order of the samples, which takes
the place of the classes. All but acts, and the results, are float64 for float64 acts, else float32.

CUDA tensors go to the compiled kernels up to the N these take: work is enqueued on the current stream, nothing waits
for the device and nothing is read back. Larger N, and devices whose architecture or driver the build does not fit (one
warning says why), take plain PyTorch on the device: eigenvalues in float64, a few filters at a time. There
``torch.linalg.eigvalsh`` waits for the device, so that route cannot be captured in a CUDA graph.
"""
# SPDX-License-Identifier: MIT

import math
import os
import platform
import re
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from hrel_ext import _rational, reference


def _why_not_built(cause: str, folder: Path) -> str:
    """What to do where the native module is not in the folder, or does not load for the cause that Python tells."""
    build = "run `pip install .` in the source tree (`pip install -e .` to develop)"
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        build = f"install a C++ compiler (GCC 11 or newer, or Clang 14 or newer), then {build}"
    if missing := re.search(r"version `((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found", cause):
        return (
            f"hrel_ext is not built for this system: its native module needs {missing[1]}, and the C or C++ library "
            f"here is older ({' '.join(platform.libc_ver())}); {build}"
        )
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    others = sorted(path.name for path in folder.glob("_C.*.so"))
    if others and f"_C{suffix}" not in others:
        return f"hrel_ext is not built for this Python: there is {', '.join(others)}, and no _C{suffix}; {build}"
    return f"hrel_ext is not built: its native module hrel_ext._C is missing or does not load ({cause}); {build}"


try:
    from hrel_ext import _C
except ImportError as error:
    raise ImportError(_why_not_built(str(error), Path(__file__).parent)) from error

_PROBLEMS = {
    torch.float16: (_C.RelevanceProblem_float16, _C.AlignmentProblem_float16),
    torch.bfloat16: (_C.RelevanceProblem_bfloat16, _C.AlignmentProblem_bfloat16),
    torch.float32: (_C.RelevanceProblem_float32, _C.AlignmentProblem_float32),
    torch.float64: (_C.RelevanceProblem_float64, _C.AlignmentProblem_float64),
}
_LABEL_PROBLEMS = {
    torch.float32: (_C.TermsProblem_float32, _C.WidthProblem_float32),
    torch.float64: (_C.TermsProblem_float64, _C.WidthProblem_float64),
}
_PERMUTATION_PROBLEMS = {
    torch.float32: _C.PermutationProblem_float32,
    torch.float64: _C.PermutationProblem_float64,
}
_ENTROPY_PROBLEMS = {torch.float32: _C.EntropyProblem_float32, torch.float64: _C.EntropyProblem_float64}
_HALF = (torch.float16, torch.bfloat16)
MAX_CHUNK_BYTES = 64 << 20  # of the (f, N, N) matrices that plain PyTorch holds at a time
_warned: set[str] = set()


def build_info() -> dict[str, Any]:
    """What was built and what runs here.

    Returns:
        ``version``; ``isa_level`` in use on this processor ("x86-64", "x86-64-v3", "x86-64-v4") and
        ``isa_levels_built``; ``cuda``, whether CUDA kernels were built, and ``cuda_architectures``, for which;
        ``cuda_largest_num_samples``, the N up to which they take tensors of the current CUDA device, 0 where they do
        not run on it and None without one; ``compiler``.

    Example:
        >>> info = hrel_ext.build_info()
        >>> info["isa_level"] in info["isa_levels_built"]
        True
    """
    return {
        "version": version("hrel_ext"),
        "isa_level": _C.isa_level(),
        "isa_levels_built": _C.isa_levels_built(),
        "cuda": bool(_architectures()),
        "cuda_architectures": list(_architectures()),
        "cuda_largest_num_samples": (
            _cuda_device(torch.cuda.current_device()).largest_num_samples if torch.cuda.is_available() else None
        ),
        "compiler": _C.compiler,
    }


@cache
def _architectures() -> tuple[str, ...]:
    return tuple(a for a in _C.cuda_architectures().split(",") if a)


class _CudaDevice(NamedTuple):
    largest_num_samples: int  # N up to which the kernels run on it, 0 where they do not
    capability: tuple[int, int]
    runtime_beyond_driver: str  # the version of this build's CUDA runtime where the driver is too old for it, else ""


@cache
def _cuda_device(index: int) -> _CudaDevice:
    return _CudaDevice(
        _C.cuda_largest_num_samples(index),
        torch.cuda.get_device_capability(index),
        _C.cuda_runtime_beyond_driver(index),
    )


def _route(num_samples: int, device: _CudaDevice, architectures: Sequence[str]) -> tuple[bool, str | None]:
    """Whether compiled kernels take CUDA tensors of N samples, and, where they take none at all, the reason.

    Args:
        num_samples: N.
        device: that of the tensors.
        architectures: those built, such as "90".
    """
    if device.largest_num_samples > 0:
        return num_samples <= device.largest_num_samples, None
    if not architectures:
        return False, "this build of hrel_ext holds no CUDA kernels; build them with `HREL_CUDA=ON pip install .`"
    if device.runtime_beyond_driver:
        return False, (
            f"the driver is too old for the CUDA runtime of this build, {device.runtime_beyond_driver}; update the "
            "driver, or build with an older toolkit: `HREL_CUDA=ON CUDACXX=<its nvcc> pip install .`"
        )
    built, here = ", ".join(f"sm_{a}" for a in architectures), "{}{}".format(*device.capability)
    return False, (
        f"the CUDA kernels of this build are for {built} and do not run on this device, sm_{here}; "
        f"build them with `HREL_CUDA=ON CMAKE_CUDA_ARCHITECTURES={here} pip install .`"
    )


def _is_compiled(device: torch.device, num_samples: int) -> bool:
    """Whether the native module takes tensors of the device; warns, once for each reason, where it never does."""
    if device.type == "cpu":
        return True
    compiled, reason = _route(num_samples, _cuda_device(device.index), _architectures())
    if reason is not None and reason not in _warned:
        _warned.add(reason)
        message = f"{reason}; until then plain PyTorch computes on the device, by eigenvalues"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return compiled


def result_dtype(acts: Tensor) -> torch.dtype:
    """The dtype of whatever is computed from ``acts``: float64 for float64, else float32."""
    return torch.float64 if acts.dtype == torch.float64 else torch.float32


@cache
def _host_bytes() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf


def check_memory(what: str, num_bytes: int, device: torch.device) -> None:
    """Raise MemoryError where ``what`` needs more bytes than the device has, used or not, before any is allocated.

    Where memory is overcommitted, as by Linux, too much of it would be granted, and its first use end the process.
    """
    on_cuda = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if on_cuda else _host_bytes()
    if num_bytes > total:
        raise MemoryError(
            f"{what} need at least {num_bytes} bytes, more than the {total} of {device}: take fewer samples"
        )


def _run(problem: Any, device: torch.device) -> None:
    """Run a problem of the native module on the device that its operands lie on."""
    if device.type == "cpu":
        problem.run_on_cpu(num_threads=torch.get_num_threads())
        return
    num_bytes = problem.cuda_workspace_bytes(device=device.index)
    # Freed when this returns: the allocator gives it to later work of the same stream only.
    workspace = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    problem.run_on_cuda(
        workspace_ptr=workspace.data_ptr(),
        workspace_bytes=num_bytes,
        device=device.index,
        stream_ptr=torch.cuda.current_stream(device).cuda_stream,
    )


def _check(acts: Tensor, order: Tensor, class_offsets: Tensor, label_gram: Tensor | None, **others: Tensor) -> None:
    """Raise ValueError unless the operands have the shapes, dtypes and device of the module's docstring.

    NotImplementedError where a derivative would be wanted: without one of its own, an op would leave it None.
    """
    shape, dtype, device = acts.shape, acts.dtype, acts.device
    on_cpu = device.type == "cpu"
    if len(shape) != 3 or dtype not in _PROBLEMS or (on_cpu and dtype in _HALF):
        dtypes = "float32 or float64" if on_cpu else "float16, bfloat16, float32 or float64"
        raise ValueError(f"acts must be (N, F, D) of {dtypes}, got {tuple(shape)} of {dtype}")
    (num_samples, num_filters, _), result = shape, result_dtype(acts)
    _check_operand("acts", acts, shape, dtype, device)
    _check_operand("order", order, (num_samples,), torch.int64, device)
    _check_operand("class_offsets", class_offsets, (num_samples + 1,), torch.int64, device)
    for name, tensor in others.items():
        _check_operand(name, tensor, (num_filters if name == "sigma" else tensor.numel(),), result, device)
    if label_gram is not None:
        _check_operand("label_gram", label_gram, (num_samples, num_samples), result, device)
    # Half a matrix in float32 is the least of the native kernels, which know the rest; plain PyTorch takes float64.
    check_memory(f"acts of N = {num_samples} samples", num_samples**2 * (2 if on_cpu else 8), device)


def _check_operand(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
        raise ValueError(
            f"{name} must be {tuple(shape)} of {dtype} on {device}, got {tuple(tensor.shape)} of {tensor.dtype} "
            f"on {tensor.device}"
        )
    if tensor.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(f"{name} must not require grad: the op has no derivative")


def _maps(acts: Tensor) -> dict[str, Any]:
    """The address, extents and strides of acts (N, F, D). The caller keeps the tensor alive during the call."""
    return {"acts_ptr": acts.data_ptr(), "acts_shape": tuple(acts.shape), "acts_strides": acts.stride()}


def _operands(acts: Tensor, order: Tensor, class_offsets: Tensor, label_gram: Tensor | None) -> dict[str, Any]:
    """Addresses, extents and strides. The caller keeps the tensors alive during the call."""
    return {
        **_maps(acts),
        "order_ptr": order.data_ptr(),
        "class_offsets_ptr": class_offsets.data_ptr(),
        "label_gram_ptr": 0 if label_gram is None else label_gram.data_ptr(),
    }


@lru_cache(maxsize=256)
def _entropy_order(dtype: torch.dtype, alpha: float, num_samples: int) -> _C.EntropyOrder:
    """The order of the entropy, with a rational function for it where one is accurate enough."""
    fit = None if dtype == torch.float64 else _rational.fit(alpha, num_samples)
    if fit is None:
        return _C.EntropyOrder(alpha=alpha, powers=(), poles=(), weights=())
    return _C.EntropyOrder(alpha=alpha, powers=fit.powers, poles=_rational.POLES.tolist(), weights=fit.weights)


def _sample_order(order: Tensor, label_gram: Tensor | None) -> Tensor:
    """A label kernel refers to the samples as they stand, so nothing is sorted. Returns (N,), contiguous."""
    return order.contiguous() if label_gram is None else torch.arange(len(order), device=order.device)


def _op(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the op of its name. `torch.library.custom_op` would, and take twice as long a call."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = f"hrel_ext::{function.__name__}"
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, ("cpu", "cuda"), function)
        return cast(Callable[..., Any], getattr(torch.ops.hrel_ext, function.__name__).default)

    return register


def _fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what stands for an op where tensors have shapes and no values."""
    return cast(Callable[..., Any], torch.library.register_fake(f"hrel_ext::{name}"))


def sort_by_class(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The operands order (N,) and class_offsets (N + 1,) of labels (N,) int64, and the smallest label (1,)."""
    num_samples = len(labels)
    if labels.is_cpu:  # in one step, as each of those below takes longer to start than to run
        labels = labels.contiguous()
        order, class_offsets = labels.new_empty(num_samples), labels.new_empty(num_samples + 1)
        smallest = labels.new_empty(1)
        _C.sort_by_class(
            labels_ptr=labels.data_ptr(),
            num_samples=num_samples,
            order_ptr=order.data_ptr(),
            class_offsets_ptr=class_offsets.data_ptr(),
            smallest_ptr=smallest.data_ptr(),
        )
        return order, class_offsets, smallest
    in_order, order = labels.sort(stable=True)  # (N,), (N,)
    # Only the first sample of a class keeps its position. Every step is a launch on CUDA, so there are few.
    positions = torch.arange(num_samples + 1, device=labels.device)  # (N + 1,)
    positions[1:num_samples].masked_fill_(in_order[1:] == in_order[:-1], num_samples)
    return order, positions.sort().values, in_order[:1]


def entropy_of_eigenvalues(eigenvalues: list[float], alpha: float) -> float:
    """The entropy in bits of a matrix with these eigenvalues, of sum 1; one that rounding made negative counts as 0."""
    return _C.entropy_of_eigenvalues(eigenvalues, alpha)


def relevance_terms(acts: Tensor, labels: Tensor, sigma: Tensor, alpha: float) -> tuple[bool, list[Tensor]]:
    """On the CPU, in one call: relevance, S(A_f) and S(A_f, B), (F,) each, and S(B), (), in bits.

    Also returned is whether the operands are as they must be: where a label is < 0, or a width not > 0 and finite,
    nothing is computed, and a filter with a value not finite has NaN. This is no op, since what PyTorch does around a
    few of them takes as long as a small layer.

    Args:
        acts: (N, F, D), F >= 1, float32 or float64, any strides.
        labels: (N,) int64, class ids.
        sigma: (F,), contiguous, of the dtype of acts.
    """
    terms = [torch.empty_like(sigma) for _ in range(3)] + [sigma.new_empty(())]
    labels = labels.contiguous()
    problem = _LABEL_PROBLEMS[acts.dtype][0](
        **_maps(acts),
        labels_ptr=labels.data_ptr(),
        entropy_order=_entropy_order(acts.dtype, alpha, len(acts)),
        sigma_ptr=sigma.data_ptr(),
        relevance_ptr=terms[0].data_ptr(),
        entropy_ptr=terms[1].data_ptr(),
        joint_entropy_ptr=terms[2].data_ptr(),
        label_entropy_ptr=terms[3].data_ptr(),
    )
    return problem.run_on_cpu(num_threads=torch.get_num_threads()), terms


def kernel_width(
    acts: Tensor, labels: Tensor, multiples: Tensor, per_filter: bool
) -> tuple[bool, tuple[Tensor, Tensor]]:
    """On the CPU, in one call: mean distance (R,) and the best of the widths ``multiples`` (M,) times it (R,).

    R = F per filter, else 1. Also returned is whether all labels are >= 0: else nothing is computed. acts and labels as
    for `relevance_terms`, multiples of the dtype of acts.
    """
    rows = acts.shape[1] if per_filter else 1
    mean_distance, width = multiples.new_empty(rows), multiples.new_empty(rows)
    labels = labels.contiguous()
    problem = _LABEL_PROBLEMS[acts.dtype][1](
        **_maps(acts),
        labels_ptr=labels.data_ptr(),
        multiples_ptr=multiples.data_ptr(),
        num_widths=len(multiples),
        per_filter=per_filter,
        mean_distance_ptr=mean_distance.data_ptr(),
        width_ptr=width.data_ptr(),
    )
    return problem.run_on_cpu(num_threads=torch.get_num_threads()), (mean_distance, width)


@_op(
    "(Tensor acts, Tensor order, Tensor class_offsets, Tensor sigma, float alpha, Tensor? label_gram)"
    " -> (Tensor, Tensor)"
)
def relevance(
    acts: Tensor, order: Tensor, class_offsets: Tensor, sigma: Tensor, alpha: float, label_gram: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S(A_f) and S(A_f, B) in bits, (F,) each; NaN for one with a value not finite; sigma must be > 0."""
    _check(acts, order, class_offsets, label_gram, sigma=sigma)
    num_samples, num_filters, _ = acts.shape
    entropy, joint_entropy = torch.empty_like(sigma), torch.empty_like(sigma)  # (F,), (F,)
    if num_filters == 0:
        return entropy, joint_entropy
    if not _is_compiled(acts.device, num_samples):
        _relevance_in_torch(acts, order, class_offsets, sigma, alpha, label_gram, entropy, joint_entropy)
        return entropy, joint_entropy
    order, class_offsets, sigma = _sample_order(order, label_gram), class_offsets.contiguous(), sigma.contiguous()
    label_gram = None if label_gram is None else label_gram.contiguous()
    problem = _PROBLEMS[acts.dtype][0](
        **_operands(acts, order, class_offsets, label_gram),
        entropy_order=_entropy_order(acts.dtype, alpha, num_samples),
        sigma_ptr=sigma.data_ptr(),
        entropy_ptr=entropy.data_ptr(),
        joint_entropy_ptr=joint_entropy.data_ptr(),
    )
    _run(problem, acts.device)
    return entropy, joint_entropy


@_fake("relevance")
def _(
    acts: Tensor, order: Tensor, class_offsets: Tensor, sigma: Tensor, alpha: float, label_gram: Tensor | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(sigma), torch.empty_like(sigma)


@_op("(Tensor acts, Tensor order, Tensor class_offsets, Tensor permutations, Tensor sigma, float alpha) -> Tensor")
def permuted_joint_entropy(
    acts: Tensor, order: Tensor, class_offsets: Tensor, permutations: Tensor, sigma: Tensor, alpha: float
) -> Tensor:
    """S(A_f, B_r) in bits, (R, F), for permuted labels, whose kernel is 1 within a class and 0 across.

    Class c of permutation r holds the samples ``order[permutations[r, class_offsets[c]:class_offsets[c + 1]]]``;
    permutations is (R, N) int64, R >= 1. The Gram matrix of a filter is computed once, of which a permutation takes its
    class blocks. NaN for a filter with a value not finite; sigma must be > 0.

    On CUDA the blocks go to `matrix_entropy`, those of one class together. The sizes of the classes are read back, so
    this op waits for the device, and cannot be captured in a CUDA graph.
    """
    _check(acts, order, class_offsets, None, sigma=sigma)
    num_samples, num_filters, _ = acts.shape
    if (
        (permutations.dim() != 2 or permutations.shape[1] != num_samples or len(permutations) == 0)
        or permutations.dtype != torch.int64
        or permutations.device != acts.device
    ):
        raise ValueError(
            f"permutations must be (R, N) = (R, {num_samples}) with R >= 1 of torch.int64 on {acts.device}, got "
            f"{tuple(permutations.shape)} of {permutations.dtype} on {permutations.device}"
        )
    joint_entropy = sigma.new_empty(len(permutations), num_filters)  # (R, F)
    if num_filters == 0:
        return joint_entropy
    if acts.is_cuda:
        _permuted_joint_entropy_by_classes(acts, order, class_offsets, permutations, sigma, alpha, joint_entropy)
        return joint_entropy
    order, class_offsets = order.contiguous(), class_offsets.contiguous()
    permutations, sigma = permutations.contiguous(), sigma.contiguous()
    problem = _PERMUTATION_PROBLEMS[acts.dtype](
        **_maps(acts),
        order_ptr=order.data_ptr(),
        class_offsets_ptr=class_offsets.data_ptr(),
        entropy_order=_entropy_order(acts.dtype, alpha, num_samples),
        permutations_ptr=permutations.data_ptr(),
        num_permutations=len(permutations),
        sigma_ptr=sigma.data_ptr(),
        joint_entropy_ptr=joint_entropy.data_ptr(),
    )
    _run(problem, acts.device)
    return joint_entropy


@_fake("permuted_joint_entropy")
def _(acts: Tensor, order: Tensor, class_offsets: Tensor, permutations: Tensor, sigma: Tensor, alpha: float) -> Tensor:
    return sigma.new_empty(permutations.shape[0], acts.shape[1])


@_op(
    "(Tensor acts, Tensor order, Tensor class_offsets, Tensor multiples, bool per_filter, Tensor? label_gram)"
    " -> (Tensor, Tensor)"
)
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
    # No kernel for float64 on CUDA: this op takes no eigenvalues, so that plain PyTorch does not wait for the device.
    if not _is_compiled(acts.device, len(acts)) or (acts.is_cuda and acts.dtype == torch.float64):
        _alignment_in_torch(acts, order, class_offsets, multiples, per_filter, label_gram, mean_distance, alignment)
        return mean_distance, alignment
    order, class_offsets = _sample_order(order, label_gram), class_offsets.contiguous()
    label_gram, multiples = None if label_gram is None else label_gram.contiguous(), multiples.contiguous()
    problem = _PROBLEMS[acts.dtype][1](
        **_operands(acts, order, class_offsets, label_gram),
        multiples_ptr=multiples.data_ptr(),
        num_widths=len(multiples),
        per_filter=per_filter,
        mean_distance_ptr=mean_distance.data_ptr(),
        alignment_ptr=alignment.data_ptr(),
    )
    _run(problem, acts.device)
    return mean_distance, alignment


def _empty_alignment(acts: Tensor, multiples: Tensor, per_filter: bool) -> tuple[Tensor, Tensor]:
    rows = acts.shape[1] if per_filter else 1
    return multiples.new_empty(rows), multiples.new_empty(rows, len(multiples))


@_fake("kernel_alignment")
def _(
    acts: Tensor,
    order: Tensor,
    class_offsets: Tensor,
    multiples: Tensor,
    per_filter: bool,
    label_gram: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _empty_alignment(acts, multiples, per_filter)


@_op("(Tensor gram, float alpha) -> Tensor")
def matrix_entropy(gram: Tensor, alpha: float) -> Tensor:
    """S(G / tr G) in bits, (B,), of positive semidefinite matrices (B, N, N), float32 or float64, any strides.

    Symmetric by contract: the lower triangle is read. NaN for a matrix with an element not finite or a trace <= 0.
    Differentiable once with respect to ``gram``, see `matrix_entropy_gradient`.
    """
    _check_matrices(gram)
    entropy = gram.new_empty(len(gram))  # (B,)
    if len(gram) == 0:
        return entropy
    if not _is_compiled(gram.device, gram.shape[1]):
        _matrix_entropy_in_torch(gram, alpha, entropy)
        return entropy
    problem = _ENTROPY_PROBLEMS[gram.dtype](
        gram_ptr=gram.data_ptr(),
        gram_shape=tuple(gram.shape),
        gram_strides=gram.stride(),
        entropy_order=_entropy_order(gram.dtype, alpha, gram.shape[1]),
        entropy_ptr=entropy.data_ptr(),
    )
    _run(problem, gram.device)
    return entropy


@_fake("matrix_entropy")
def _(gram: Tensor, alpha: float) -> Tensor:
    return gram.new_empty(len(gram))


def _check_matrices(gram: Tensor) -> None:
    if gram.dim() != 3 or gram.shape[1] != gram.shape[2] or gram.shape[1] == 0 or gram.dtype not in _ENTROPY_PROBLEMS:
        raise ValueError(
            f"gram must be (B, N, N) with N >= 1 of float32 or float64, got {tuple(gram.shape)} of {gram.dtype}"
        )


# An op of its own, so that it is one opaque call to autograd and torch.compile: derivatives of eigenvectors, which
# are infinite for equal eigenvalues, are never formed.
@_op("(Tensor gram, float alpha) -> Tensor")
def matrix_entropy_gradient(gram: Tensor, alpha: float) -> Tensor:
    """The gradient D (B, N, N) of `matrix_entropy`, in bits per unit of ``gram``, computed in float64.

    D is symmetric, and dS = <D, E> for a symmetric change E of the matrix: of an element and its mirror image, which
    only change together, each gets half. With the eigenvalues l and vectors V of A = G / tr G,

        h_k = alpha l_k^(alpha-1) / ((1-alpha) ln 2 sum_j l_j^alpha),   D = V diag(h_k - sum_j l_j h_j) V' / tr G,

    without differences of eigenvalues. h_k is infinite at l_k = 0 for alpha <= 1, so eigenvalues below eps, that of the
    dtype of ``gram``, count as eps: the rounding of A alone is of that size, as |A|_F <= 1. Where G depends smoothly on
    parameters and stays positive semidefinite, the rule does not show, since eigenvalues 0 are then at their minimum
    and do not change to first order. NaN for a matrix whose entropy is NaN, for it alone.
    """
    _check_matrices(gram)
    gradient = gram.new_empty(gram.shape)
    for some in _chunks(len(gram), gram.shape[1]):
        matrices, proper = _lower_triangles(gram[some])  # (b, N, N), (b,)
        trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]  # (b, 1, 1)
        one = _gradient_at_trace_one(matrices / trace, alpha, torch.finfo(gram.dtype).eps)  # (b, N, N)
        gradient[some] = torch.where(proper[:, None, None], one / trace, torch.nan)
    return gradient


@_fake("matrix_entropy_gradient")
def _(gram: Tensor, alpha: float) -> Tensor:
    return gram.new_empty(gram.shape)


def _gradient_at_trace_one(a: Tensor, alpha: float, smallest: float) -> Tensor:
    """`matrix_entropy_gradient` of lower triangles (b, N, N) of trace 1; eigenvalues count as ``smallest`` at least."""
    if alpha == 2:  # S = -log2 |A|_F^2
        a = a + a.tril(-1).mT
        slope = -2 / math.log(2) * a / a.square().sum((-2, -1), keepdim=True)  # (b, N, N)
        slope.diagonal(dim1=-2, dim2=-1).add_(2 / math.log(2))
        return slope
    eigenvalues, vectors = torch.linalg.eigh(a)  # (b, N), (b, N, N)
    eigenvalues = eigenvalues.clamp(min=smallest)
    beta = alpha - 1
    if abs(beta) <= 0.3:  # h' up to a constant, which the trace takes out again; so nothing is divided by 1 - alpha
        log = eigenvalues.log()
        power_sum = (eigenvalues * (beta * log).exp()).sum(-1, keepdim=True)  # (b, 1)
        slope = -(log if beta == 0 else (beta * log).expm1() / beta) * alpha / power_sum  # (b, N)
    else:  # relative to the largest, because lambda^alpha underflows for a large alpha
        largest = eigenvalues[:, -1:]  # (b, 1)
        relative = eigenvalues / largest
        slope = relative**beta / (largest * (relative**alpha).sum(-1, keepdim=True)) * (-alpha / beta)  # (b, N)
    slope = (slope - (eigenvalues * slope).sum(-1, keepdim=True)) / math.log(2)  # (b, N)
    half = (vectors * slope[:, None, :]) @ vectors.mT  # (b, N, N), symmetric up to rounding
    return (half + half.mT) / 2


def _save_operands(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    gram, ctx.alpha = inputs
    ctx.save_for_backward(gram)


def _entropy_backward(ctx: Any, bits: Tensor) -> tuple[Tensor, None]:
    (gram,) = ctx.saved_tensors
    return bits[:, None, None] * matrix_entropy_gradient(gram, ctx.alpha), None


def _no_second_derivative(ctx: Any, _: Tensor) -> None:
    raise NotImplementedError(
        "hrel_ext::matrix_entropy has no second derivative: its gradient cannot be differentiated with respect to gram"
    )


torch.library.register_autograd("hrel_ext::matrix_entropy", _entropy_backward, setup_context=_save_operands)
torch.library.register_autograd("hrel_ext::matrix_entropy_gradient", _no_second_derivative)


def _label_kernel(order: Tensor, class_offsets: Tensor, label_gram: Tensor | None) -> Tensor:
    """The label kernel (N, N) in the order of the samples, float64."""
    if label_gram is not None:
        return label_gram.double()
    positions = torch.arange(len(order), device=order.device)  # (N,)
    class_of_position = torch.searchsorted(class_offsets, positions, right=True)  # (N,)
    labels = torch.empty_like(order).scatter_(0, order, class_of_position)  # (N,)
    return (labels[:, None] == labels[None, :]).double()


def _chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of 0 .. count - 1 whose N x N matrices of float64 stay below MAX_CHUNK_BYTES."""
    step = max(1, MAX_CHUNK_BYTES // (8 * size * size))
    return (slice(first, first + step) for first in range(0, count, step))


def _relevance_in_torch(
    acts: Tensor,
    order: Tensor,
    class_offsets: Tensor,
    sigma: Tensor,
    alpha: float,
    label_gram: Tensor | None,
    entropy: Tensor,
    joint_entropy: Tensor,
) -> None:
    """The op ``relevance`` in plain PyTorch, into ``entropy`` and ``joint_entropy``."""
    labels = _label_kernel(order, class_offsets, label_gram)  # (N, N)
    for some in _chunks(acts.shape[1], len(acts)):
        maps = acts[:, some].double()  # (N, f, D)
        widths = sigma[some].double()  # (f,)
        proper = maps.isfinite().all(-1).all(0) & (widths > 0)  # (f,)
        maps, widths = torch.where(proper[:, None], maps, 0), torch.where(proper, widths, 1)  # eigvalsh raises for NaN
        own, joint = reference.entropies(maps, labels, widths, alpha)  # (f,), (f,)
        entropy[some] = torch.where(proper, own, torch.nan)
        joint_entropy[some] = torch.where(proper, joint, torch.nan)


def _permuted_joint_entropy_by_classes(
    acts: Tensor,
    order: Tensor,
    class_offsets: Tensor,
    permutations: Tensor,
    sigma: Tensor,
    alpha: float,
    joint_entropy: Tensor,
) -> None:
    """The op ``permuted_joint_entropy`` of the entropies of the class blocks, into ``joint_entropy``.

    A o B is block diagonal with blocks K_c / N of n_c rows: with p_c = n_c / N and beta = alpha - 1 its entropy is a
    mean of h_c = S(K_c / n_c) - log2 p_c with the weights p_c,

        S(A, B) = -log2(sum_c p_c 2^(-beta h_c)) / beta   (sum_c p_c h_c for beta = 0).
    """
    num_samples = len(acts)
    offsets = class_offsets[: int((class_offsets < num_samples).sum()) + 1].tolist()  # (C + 1,)
    largest = max(last - first for first, last in pairwise(offsets))
    for some in _chunks(acts.shape[1], num_samples):
        distances = reference._distances(acts[:, some].double().transpose(0, 1)[:, order])  # (f, N, N)
        widths = torch.where(sigma[some] > 0, sigma[some], torch.nan).double()  # (f,)
        gram = reference._gaussian(distances, widths[:, None, None]).to(joint_entropy.dtype)  # (f, N, N)
        for draws in _chunks(len(permutations), math.isqrt(len(gram)) * largest):  # blocks of all filters at a time
            drawn = permutations[draws]  # (r, N)
            terms, shares = [], []
            for first, last in pairwise(offsets):
                members = drawn[:, first:last]  # (r, n_c)
                blocks = gram[:, members[:, :, None], members[:, None, :]]  # (f, r, n_c, n_c)
                entropy = matrix_entropy(blocks.flatten(0, 1), alpha).unflatten(0, blocks.shape[:2])  # (f, r)
                shares.append((last - first) / num_samples)
                terms.append(entropy.double() - math.log2(shares[-1]))
            share = gram.new_tensor(shares, dtype=torch.float64)[:, None, None]  # (C, 1, 1)
            joint_entropy[draws, some] = _mean_of_entropies(torch.stack(terms), share, alpha - 1).T  # (r, f)


def _mean_of_entropies(terms: Tensor, share: Tensor, beta: float) -> Tensor:
    """-log2(sum_c share_c 2^(-beta terms_c)) / beta over the first axis, as a distance from the plain mean."""
    mean = (share * terms).sum(0)
    if beta == 0:
        return mean
    exponents = -beta * math.log(2) * (terms - mean)
    if abs(beta) <= 0.3:  # near 0 the logarithm of the sum would cancel
        return mean - (share * exponents.expm1()).sum(0).log1p() / (beta * math.log(2))
    return mean - (share.log() + exponents).logsumexp(0) / (beta * math.log(2))


def _alignment_in_torch(
    acts: Tensor,
    order: Tensor,
    class_offsets: Tensor,
    multiples: Tensor,
    per_filter: bool,
    label_gram: Tensor | None,
    mean_distance: Tensor,
    alignment: Tensor,
) -> None:
    """The op ``kernel_alignment`` in plain PyTorch, into ``mean_distance`` and ``alignment``."""
    labels = _label_kernel(order, class_offsets, label_gram)  # (N, N)
    for some in _chunks(acts.shape[1], len(acts)) if per_filter else (slice(None),):  # of the filters and of the rows
        mean_distance[some], alignment[some] = reference.alignments(
            acts[:, some].double(), labels, multiples.double(), per_filter
        )


def _matrix_entropy_in_torch(gram: Tensor, alpha: float, entropy: Tensor) -> None:
    """The op ``matrix_entropy`` in plain PyTorch, into ``entropy``."""
    for some in _chunks(len(gram), gram.shape[1]):
        matrices, proper = _lower_triangles(gram[some])  # (b, N, N), (b,)
        entropy[some] = torch.where(proper, reference.matrix_entropy(matrices, alpha), torch.nan)


def _lower_triangles(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Lower triangles (b, N, N) in float64, and which have an entropy (b,); the others are I: eigh raises for NaN."""
    matrices = gram.double().tril()  # (b, N, N)
    proper = matrices.isfinite().all(-1).all(-1) & (matrices.diagonal(dim1=-2, dim2=-1).sum(-1) > 0)  # (b,)
    identity = torch.eye(gram.shape[1], dtype=torch.float64, device=gram.device)  # (N, N)
    return torch.where(proper[:, None, None], matrices, identity), proper
