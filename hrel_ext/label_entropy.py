"""Entropy of the labels, in closed form."""
# SPDX-License-Identifier: MIT

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def label_entropy(class_sizes: NDArray[Any], across: float, alpha: float) -> float:
    """S(B) in bits, for B = L / N with L the label kernel: 1 within a class and ``across`` between two.

        S(B) = log2(sum_k lambda_k^alpha) / (1 - alpha),   -sum_k lambda_k log2 lambda_k for alpha = 1,

    where lambda are the eigenvalues of B that are not 0. These are the shares of the classes where L is 0 across, and
    else those of the matrix (C, C) that B is on the span of the C classes' indicators, in their orthonormal basis.

    Args:
        class_sizes: (C,), integers, samples of each class, 0 for one that is not used.
        across: of [0, 1].
        alpha: order of the entropy, > 0.

    Returns:
        bits, in float64.

    Source: Sanchez Giraldo, Rao, Principe, doi 10.1109/TIT.2014.2370058.
    """
    shares = class_sizes[class_sizes > 0] / class_sizes.sum()  # (C,), float64
    spectrum = shares
    if across:
        root = np.sqrt(shares)  # (C,)
        spectrum = np.linalg.eigvalsh(np.diag((1 - across) * shares) + across * np.outer(root, root))  # (C,)
        spectrum = spectrum[spectrum > 0]  # one that rounding made negative is 0
    beta = alpha - 1
    logarithm = np.log(spectrum)
    if beta == 0:
        return -float((spectrum * logarithm).sum()) / math.log(2)
    if abs(beta) <= 0.3:  # near 1 the quotient below would cancel, far from it this one does
        return -math.log1p((spectrum * np.expm1(beta * logarithm)).sum()) / (beta * math.log(2))
    largest = spectrum.max()  # taken out: a large alpha would underflow
    return (math.log2(((spectrum / largest) ** alpha).sum()) + alpha * math.log2(largest)) / (1 - alpha)
