"""Entropy of the labels, in closed form."""
# SPDX-License-Identifier: MIT

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from hrel_ext import _ops


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
    num_samples = class_offsets[-1]
    filled = class_offsets[: class_offsets.index(num_samples) + 1]  # the offsets of what follows are all N
    # (C,), the shares of the classes that have samples
    spectrum = [(last - first) / num_samples for first, last in pairwise(filled) if last > first]
    if across:
        shares = np.array(spectrum)
        root = np.sqrt(shares)  # (C,)
        eigenvalues = np.linalg.eigvalsh(np.diag((1 - across) * shares) + across * np.outer(root, root))  # (C,)
        spectrum = eigenvalues.tolist()
    return _ops.entropy_of_eigenvalues(spectrum, alpha)
