"""Entropy of the labels, in closed form."""
# SPDX-License-Identifier: MIT

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def label_entropy(class_offsets: Sequence[int], across: float, alpha: float) -> float:
    """S(B) in bits, for B = L / N with L the label kernel: 1 within a class and ``across`` between two.

        S(B) = log2(sum_k lambda_k^alpha) / (1 - alpha),   -sum_k lambda_k log2 lambda_k for alpha = 1,

    where lambda are the eigenvalues of B that are not 0. These are the shares of the classes where L is 0 across, and
    else those of the matrix (C, C) that B is on the span of the C classes' indicators, in their orthonormal basis.

    Args:
        class_offsets: (C + 1,), class c has class_offsets[c + 1] - class_offsets[c] samples, at least one of them has.
        across: of [0, 1].
        alpha: order of the entropy, > 0.

    Returns:
        bits, in float64.

    Source: Sanchez Giraldo, Rao, Principe, doi 10.1109/TIT.2014.2370058.
    """
    # (C,), the shares of the classes that have samples
    spectrum = [(last - first) / class_offsets[-1] for first, last in pairwise(class_offsets) if last > first]
    if across:
        shares = np.array(spectrum)
        root = np.sqrt(shares)  # (C,)
        eigenvalues = np.linalg.eigvalsh(np.diag((1 - across) * shares) + across * np.outer(root, root))  # (C,)
        spectrum = eigenvalues[eigenvalues > 0].tolist()  # one that rounding made negative is 0
    # A few classes are no work for NumPy, which takes longer to start.
    beta = alpha - 1
    if beta == 0:
        return -math.fsum(share * math.log2(share) for share in spectrum)
    if abs(beta) <= 0.3:  # near 1 the quotient below would cancel, far from it this one does
        change = math.fsum(share * math.expm1(beta * math.log(share)) for share in spectrum)
        return -math.log1p(change) / (beta * math.log(2))
    largest = max(spectrum)  # taken out: a large alpha would underflow
    total = math.fsum((share / largest) ** alpha for share in spectrum)
    return (math.log2(total) + alpha * math.log2(largest)) / (1 - alpha)
