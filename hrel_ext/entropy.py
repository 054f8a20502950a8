"""Entropy of the labels, in closed form."""
# SPDX-License-Identifier: MIT

import math

import torch
from torch import Tensor


def label_entropy(class_offsets: Tensor, label_gram: Tensor | None, alpha: float) -> Tensor:
    """S(B) in bits, for B = L / N with L the label kernel.

        S(B) = log2(sum_c p_c^alpha) / (1 - alpha),   -sum_c p_c log2 p_c for alpha = 1,

    where p are the shares of the classes, which are the eigenvalues of B when L is 1 within a class and 0 across; else
    the eigenvalues of ``label_gram`` / N.

    Args:
        class_offsets: (N + 1,) int64, class c holds ``class_offsets[c + 1] - class_offsets[c]`` samples.
        label_gram: (N, N) with unit diagonal, or None for classes.
        alpha: order of the entropy, > 0.

    Returns:
        (), float64.

    Source: Sanchez Giraldo, Rao, Principe, doi 10.1109/TIT.2014.2370058.
    """
    num_samples = len(class_offsets) - 1
    if label_gram is None:
        spectrum = class_offsets.diff().double() / num_samples  # (N,), 0 for the unused
    else:
        spectrum = torch.linalg.eigvalsh(label_gram.double() / num_samples).clamp_min(0)  # (N,)
    beta = alpha - 1
    if beta == 0:
        return -torch.special.xlogy(spectrum, spectrum).sum() / math.log(2)
    logarithm = torch.where(spectrum > 0, spectrum, 1).log()
    if abs(beta) <= 0.3:  # near 1 the quotient below would cancel, far from it this one does
        return -torch.log1p((spectrum * torch.expm1(beta * logarithm)).sum()) / (beta * math.log(2))
    largest = spectrum.max()  # taken out: a large alpha would underflow
    return (((spectrum / largest) ** alpha).sum().log2() + alpha * largest.log2()) / (1 - alpha)
