"""Quantities of information from Gram matrices, in bits, all composed of the op ``matrix_entropy``.

S(K) = log2(sum_k lambda_k(A)^alpha) / (1 - alpha) with A_ij = K_ij / (N sqrt(K_ii K_jj)); several variables by the
element-wise product of their matrices A, scaled to trace 1. All functions take Gram matrices of the same N samples,
(..., N, N), whose leading dimensions broadcast.
"""
# SPDX-License-Identifier: MIT

import math
from functools import reduce

import torch
from torch import Tensor

from hrel_ext import _ops
from hrel_ext._batch import positive


def entropy(K: Tensor, *, alpha: float = 1.01) -> Tensor:
    """Matrix-based Renyi entropy of a variable, from the Gram matrix of its samples.

        S(K) = log2(sum_k lambda_k(A)^alpha) / (1 - alpha),   A_ij = K_ij / (N sqrt(K_ii K_jj))

    with the eigenvalues lambda of A. At alpha = 1 it is -sum_k lambda_k log2 lambda_k, at alpha = 2 it is
    -log2 sum_ij A_ij^2, both exactly. 0 <= S <= log2 N: 0 where all samples are equal, log2 N where all are far apart.
    A matrix without a unit diagonal is brought to one, as in the definition; one that has it is taken as it is.

    Args:
        K: (..., N, N), float32 or float64, any strides: a kernel matrix, symmetric and positive semidefinite with a
            diagonal > 0, as of `gram`. The lower triangle is read, after a check of the symmetry. A negative eigenvalue
            counts as 0.
        alpha: order of the entropy, > 0. HRel's published code uses 1, Yu 1.01 (``CONVENTIONS``). A Gram matrix is the
            same in both conventions where sigma_hrel = sqrt(2) sigma_yu.

    Returns:
        (...), bits, in the dtype of ``K``. Differentiable once; the gradient is symmetric, the one with respect to a
        symmetric matrix.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also for values that no kernel matrix has.

    Source: Sanchez Giraldo, Rao, Principe, IEEE Trans. Inf. Theory 61 (2015), doi 10.1109/TIT.2014.2370058.

    Example:
        >>> round(hrel_ext.entropy(torch.eye(8)).item(), 4)  # eight samples far apart
        3.0
        >>> K = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)  # eigenvalues 3/4 and 1/4 of A
        >>> round(hrel_ext.entropy(K, alpha=1).item(), 6), round(2 - 0.75 * math.log2(3), 6)
        (0.811278, 0.811278)
    """
    alpha, (a,) = _checked(alpha, K=K)
    return _bits(alpha, a)


def joint_entropy(*grams: Tensor, alpha: float = 1.01) -> Tensor:
    """Joint entropy of any number of variables, from the Gram matrices of the same N samples.

        S(K1, K2, ...) = S(K1 o K2 o ...),   o the element-wise product of matrices scaled to unit diagonal

    For every alpha it is at least the largest of the S(K_i), since the eigenvalues of a product with a matrix of unit
    diagonal are majorised by those of the other factor, and at most log2 N. S(K1, K2) <= S(K1) + S(K2) is guaranteed
    for alpha = 1 only.

    Args:
        grams: one or more of (..., N, N), as ``entropy`` takes them, of one dtype and device, by position; leading
            dimensions broadcast.
        alpha: order of the entropy, > 0; 1 in the convention of HRel.

    Returns:
        (...), bits, in the dtype of the matrices. Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument (K1, K2, ... by position), its rule and the value.

    Source: Yu, Sanchez Giraldo, Jenssen, Principe, IEEE TPAMI 42 (2020), doi 10.1109/TPAMI.2019.2932976.

    Example:
        >>> row, column = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])  # two independent fair bits
        >>> K1, K2 = ((v[:, None] == v).float() for v in (row, column))
        >>> round(hrel_ext.joint_entropy(K1, K2).item(), 4)
        2.0
    """
    alpha, units = _checked(alpha, **_by_position(grams))
    return _bits(alpha, *units)


def mutual_information(K1: Tensor, K2: Tensor, *, alpha: float = 1.01) -> Tensor:
    """Mutual information of two variables.

        I(K1; K2) = S(K1) + S(K2) - S(K1, K2)

    I <= min(S(K1), S(K2)) for every alpha; I >= 0 is guaranteed for alpha = 1 only (docs/math.md has five samples with
    I < 0 at alpha = 2). I(K; K) = 2 S(K) - S(K o K) is at most S(K), and equal to it where all elements of K are 0 or
    1. The estimate is biased upwards: compare it for one N and one choice of widths only.

    Args:
        K1, K2: (..., N, N), as ``entropy`` takes them, of one dtype and device; leading dimensions broadcast.
        alpha: order of the entropy, > 0; 1 in the convention of HRel.

    Returns:
        (...), bits, in the dtype of the matrices. Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value.

    Source: Sanchez Giraldo, Rao, Principe, IEEE Trans. Inf. Theory 61 (2015), doi 10.1109/TIT.2014.2370058.

    Example:
        >>> row, column = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])  # two independent fair bits
        >>> K1, K2 = ((v[:, None] == v).double() for v in (row, column))
        >>> [abs(round(hrel_ext.mutual_information(K1, K).item(), 6)) for K in (K1, K2)]
        [1.0, 0.0]
    """
    alpha, (a, b) = _checked(alpha, K1=K1, K2=K2)
    return _bits(alpha, a) + _bits(alpha, b) - _bits(alpha, a, b)


def conditional_entropy(K1: Tensor, given: Tensor, *, alpha: float = 1.01) -> Tensor:
    """Entropy of a variable that is left when another one is known.

        S(K1 | given) = S(K1, given) - S(given)

    It is >= 0 for every alpha, and <= S(K1) is guaranteed for alpha = 1 only. To condition on several variables, pass
    the element-wise product of their Gram matrices.

    Args:
        K1, given: (..., N, N), as ``entropy`` takes them, of one dtype and device; leading dimensions broadcast.
        alpha: order of the entropy, > 0; 1 in the convention of HRel.

    Returns:
        (...), bits, in the dtype of the matrices. Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value.

    Source: Sanchez Giraldo, Rao, Principe, IEEE Trans. Inf. Theory 61 (2015), doi 10.1109/TIT.2014.2370058.

    Example:
        >>> row, column = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])  # two independent fair bits
        >>> K1, K2 = ((v[:, None] == v).float() for v in (row, column))
        >>> round(hrel_ext.conditional_entropy(K1, K2).item(), 4)
        1.0
    """
    alpha, (a, g) = _checked(alpha, K1=K1, given=given)
    return _bits(alpha, a, g) - _bits(alpha, g)


def conditional_mutual_information(K1: Tensor, K2: Tensor, given: Tensor, *, alpha: float = 1.01) -> Tensor:
    """Mutual information of two variables when a third one is known.

        I(K1; K2 | given) = S(K1, given) + S(K2, given) - S(K1, K2, given) - S(given)

    It obeys the chain rule I(K1; K2, given) = I(K1; given) + I(K1; K2 | given); >= 0 is guaranteed for alpha = 1 only.

    Args:
        K1, K2, given: (..., N, N), as ``entropy`` takes them, of one dtype and device; leading dimensions broadcast.
        alpha: order of the entropy, > 0; 1 in the convention of HRel.

    Returns:
        (...), bits, in the dtype of the matrices. Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value.

    Source: Yu, Sanchez Giraldo, Jenssen, Principe, IEEE TPAMI 42 (2020), doi 10.1109/TPAMI.2019.2932976.

    Example:
        >>> row, column = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])  # independent, but not given their XOR
        >>> K1, K2, K3 = ((v[:, None] == v).float() for v in (row, column, row ^ column))
        >>> round(hrel_ext.conditional_mutual_information(K1, K2, K3).item(), 4)
        1.0
    """
    alpha, (a, b, g) = _checked(alpha, K1=K1, K2=K2, given=given)
    return _bits(alpha, a, g) + _bits(alpha, b, g) - _bits(alpha, a, b, g) - _bits(alpha, g)


def total_correlation(*grams: Tensor, alpha: float = 1.01) -> Tensor:
    """What any number of variables share, counted from their entropies.

        T(K1, K2, ...) = S(K1) + S(K2) + ... - S(K1, K2, ...)

    Of two variables it is their mutual information, of one it is 0; >= 0 is guaranteed for alpha = 1 only.

    Args:
        grams: one or more of (..., N, N), as ``entropy`` takes them, of one dtype and device, by position; leading
            dimensions broadcast.
        alpha: order of the entropy, > 0; 1 in the convention of HRel.

    Returns:
        (...), bits, in the dtype of the matrices. Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument (K1, K2, ... by position), its rule and the value.

    Source: Yu, Sanchez Giraldo, Jenssen, Principe, IEEE TPAMI 42 (2020), doi 10.1109/TPAMI.2019.2932976.

    Example:
        >>> row, column = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])  # two of them tell the third
        >>> grams = [(v[:, None] == v).float() for v in (row, column, row ^ column)]
        >>> round(hrel_ext.total_correlation(*grams).item(), 4)
        1.0
    """
    alpha, units = _checked(alpha, **_by_position(grams))
    return sum(_bits(alpha, unit) for unit in units) - _bits(alpha, *units)


def _bits(alpha: float, *units: Tensor) -> Tensor:
    """The entropy (...) of the product of matrices (..., N, N) of unit diagonal."""
    product = reduce(torch.mul, units)  # (..., N, N)
    return _ops.matrix_entropy(product.reshape(-1, *product.shape[-2:]), alpha).reshape(product.shape[:-2])


def _by_position(grams: tuple[Tensor, ...]) -> dict[str, Tensor]:
    if not grams:
        raise TypeError("at least one Gram matrix K1 must be given, got none")
    return {f"K{position}": matrix for position, matrix in enumerate(grams, 1)}


def _checked(alpha: float, **grams: Tensor) -> tuple[float, list[Tensor]]:
    """The order, and the matrices (..., N, N) with a diagonal of 1; errors call them by the names given here."""
    alpha = positive("alpha", alpha)
    first_name, first = next(iter(grams.items()))
    for name, matrix in grams.items():
        if not isinstance(matrix, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(matrix).__name__}")
        if matrix.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} must be float32 or float64, got {matrix.dtype}")
        if matrix.dim() < 2 or matrix.shape[-2] != matrix.shape[-1] or matrix.shape[-1] == 0:
            raise ValueError(f"{name} must have shape (..., N, N) with N >= 1, got {tuple(matrix.shape)}")
        if matrix.dtype != first.dtype:
            raise TypeError(f"{name} must have the dtype of {first_name}, {first.dtype}, got {matrix.dtype}")
        if matrix.device != first.device:
            raise ValueError(f"{name} must be on the device of {first_name}, {first.device}, got {matrix.device}")
        if matrix.shape[-1] != first.shape[-1]:
            raise ValueError(
                f"{name} must be of the N = {first.shape[-1]} samples of {first_name} {tuple(first.shape)}, "
                f"got {tuple(matrix.shape)}"
            )
    try:
        torch.broadcast_shapes(*(matrix.shape for matrix in grams.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(matrix.shape)}" for name, matrix in grams.items())
        raise ValueError(f"the leading dimensions of the Gram matrices must broadcast, got {shapes}") from None
    return alpha, [_unit_diagonal(name, matrix) for name, matrix in grams.items()]


def _unit_diagonal(name: str, matrix: Tensor) -> Tensor:
    """K_ij / sqrt(K_ii K_jj), (..., N, N): ``matrix`` bit for bit where its diagonal is 1."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)  # (..., N)
    root = diagonal.sqrt()  # (..., N)
    unit = matrix / (root[..., :, None] * root[..., None, :])
    if matrix.numel() == 0:
        return unit
    with torch.no_grad():
        facts = matrix.isfinite().all(), diagonal.amin(), (unit - unit.mT).abs().amax(), unit.abs().amax()
        finite, lowest, asymmetry, largest = torch.stack([fact.double() for fact in facts]).tolist()  # one wait
    tolerance = math.sqrt(torch.finfo(matrix.dtype).eps)  # far above rounding, far below a mistake
    if not finite:
        raise ValueError(f"{name} must be finite, got NaN or Inf")
    if not lowest > 0:
        raise ValueError(f"{name} must have a diagonal > 0, got {lowest:g}")
    if asymmetry > tolerance:
        raise ValueError(
            f"{name} must be symmetric, |K_ij - K_ji| <= {tolerance:.1g} sqrt(K_ii K_jj), got {asymmetry:.3g} times it"
        )
    if largest > 1 + tolerance:
        raise ValueError(
            f"{name} must be positive semidefinite, so |K_ij| <= sqrt(K_ii K_jj), got {largest:.3g} times it"
        )
    return unit
