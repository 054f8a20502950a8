"""The estimator in plain PyTorch, as it is defined: the oracle of the tests and the baseline of the benchmarks.

I(A; B) = S(A) + S(B) - S(A o B / tr(A o B)) in bits, with A = K / N and K_ij = exp(-|x_i - x_j|^2 / sigma^2).
"""
# SPDX-License-Identifier: MIT

import math
from typing import NamedTuple

import torch
from torch import Tensor


class RelevanceTerms(NamedTuple):
    """The relevance of every filter and the three entropies it is made of, in bits."""

    relevance: Tensor  # (F,)
    entropy: Tensor  # (F,), S(A)
    joint_entropy: Tensor  # (F,), S(A, B)
    label_entropy: Tensor  # (), S(B)


def relevance(
    acts: Tensor,
    labels: Tensor,
    *,
    sigma: float | str | Tensor | None = None,
    alpha: float = 1.01,
    label_sigma: float = 0.1,
) -> Tensor:
    """Score each filter by its mutual information with the labels, in bits.

        I(A; B) = S(A) + S(B) - S(A o B / tr(A o B))

    Args:
        acts: (N, F, *spatial), floating point, any device and strides.
        labels: (N,), integer class ids.
        sigma: kernel width, one number or (F,); None or "layer" takes the aligned width of the layer, "filter" one per
            filter.
        alpha: order of the entropy, > 0; 1 is the Shannon limit.
        label_sigma: kernel width of the one-hot labels, whose classes are sqrt(2) apart.

    Returns:
        (F,), bits; float64 for float64 input, else float32.

    Source: HRel, doi 10.1016/j.neunet.2021.12.017.
    """
    return relevance_terms(acts, labels, sigma=sigma, alpha=alpha, label_sigma=label_sigma).relevance


@torch.no_grad()
def relevance_terms(
    acts: Tensor,
    labels: Tensor,
    *,
    sigma: float | str | Tensor | None = None,
    alpha: float = 1.01,
    label_sigma: float = 0.1,
) -> RelevanceTerms:
    """Return the relevance of every filter beside the entropies it is made of.

        I(A; B) = S(A) + S(B) - S(A, B),   S(A) = log2(sum_k lambda_k(A)^alpha) / (1 - alpha)

    Args:
        acts: (N, F, *spatial), floating point, any device and strides.
        labels: (N,), integer class ids.
        sigma: kernel width, one number or (F,); None or "layer" takes the aligned width of the layer, "filter" one per
            filter.
        alpha: order of the entropy, > 0; 1 is the Shannon limit.
        label_sigma: kernel width of the one-hot labels, whose classes are sqrt(2) apart.

    Returns:
        Relevance, S(A) and S(A, B) of shape (F,) and S(B) of shape (), bits; float64 for float64 input, else float32.

    Source: Sanchez Giraldo, Rao, Principe, doi 10.1109/TIT.2014.2370058; HRel, doi 10.1016/j.neunet.2021.12.017.
    """
    maps = _maps(acts)  # (F, N, D)
    num_filters, num_samples, _ = maps.shape
    if sigma is None or isinstance(sigma, str):
        sigma = kernel_width(acts, labels, per_filter=sigma == "filter", label_sigma=label_sigma)
    widths = torch.as_tensor(sigma, dtype=maps.dtype, device=maps.device).expand(num_filters)  # (F,)
    labels_gram = _label_gram(labels, label_sigma, maps.dtype)  # (N, N)
    entropy, joint_entropy = entropies(maps.transpose(0, 1), labels_gram, widths, alpha)
    label_entropy = _entropy(labels_gram / num_samples, alpha)
    return RelevanceTerms(entropy + label_entropy - joint_entropy, entropy, joint_entropy, label_entropy)


def entropies(acts: Tensor, label_gram: Tensor, sigma: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """S(A_f) and S(A_f, B) in bits, (F,) each, from acts (N, F, D), a label kernel (N, N) and widths (F,)."""
    a = _gaussian(_distances(acts.transpose(0, 1)), sigma[:, None, None]) / len(acts)  # (F, N, N)
    joint = a * label_gram  # (F, N, N)
    return _entropy(a, alpha), matrix_entropy(joint, alpha)


def matrix_entropy(gram: Tensor, alpha: float) -> Tensor:
    """S(G / tr G) in bits, (...), of positive semidefinite matrices (..., N, N), whose lower triangle is read."""
    return _entropy(gram / gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None], alpha)


@torch.no_grad()
def kernel_width(
    acts: Tensor,
    labels: Tensor,
    *,
    per_filter: bool = False,
    low: float = 0.3,
    high: float = 10.0,
    num_widths: int = 300,
    label_sigma: float = 0.1,
) -> Tensor:
    """Find the kernel width that aligns the Gram matrix K of the maps best with the Gram matrix L of the labels.

        argmax_sigma 2 log2(<K, L> / (|K|_F |L|_F)),   sigma in linspace(low, high, num_widths) * mean_ij |x_i - x_j|

    The mean runs over all N^2 pairs, the N zeros of the diagonal included. Of equal maxima the smallest width wins.

    Args:
        acts: (N, F, *spatial), floating point, any device and strides.
        labels: (N,), integer class ids.
        per_filter: one width for each filter, instead of one from the distances between outputs of the whole layer.
        low: smallest width, in mean distances.
        high: largest width, in mean distances.
        num_widths: number of equally spaced widths.
        label_sigma: kernel width of the one-hot labels.

    Returns:
        (), or (F,) per filter; 1 where all maps are equal, since then every width gives the same kernel.

    Source: HRel's published code, after Wickstrom et al., arXiv 1909.11396.
    """
    maps = _maps(acts)  # (F, N, D)
    multiples = torch.linspace(low, high, num_widths, dtype=maps.dtype, device=maps.device)  # (M,)
    labels_gram = _label_gram(labels, label_sigma, maps.dtype)  # (N, N)
    mean, alignment = alignments(maps.transpose(0, 1), labels_gram, multiples, per_filter)
    widths = torch.where(mean > 0, multiples[alignment.argmax(-1)] * mean, 1)  # (F or 1,)
    return widths if per_filter else widths[0]


def alignments(acts: Tensor, label_gram: Tensor, multiples: Tensor, per_filter: bool) -> tuple[Tensor, Tensor]:
    """Mean distance (R,) and alignment (R, M) of the widths multiples (M,) times it, R = F per filter, else 1."""
    points = acts.transpose(0, 1) if per_filter else acts.flatten(1)[None]  # (R, N, D) or (1, N, F D)
    distances = _distances(points)  # (R, N, N)
    mean = distances.mean(dim=(-2, -1))  # (R,)
    alignment = acts.new_empty(len(points), len(multiples))  # (R, M)
    for m, multiple in enumerate(multiples):
        k = _gaussian(distances, torch.where(mean > 0, multiple * mean, 1)[:, None, None])  # (R, N, N)
        norms = torch.linalg.matrix_norm(k) * torch.linalg.matrix_norm(label_gram)  # (R,)
        alignment[:, m] = 2 * torch.log2((k * label_gram).sum((-2, -1)) / norms)
    return mean, alignment


def _maps(acts: Tensor) -> Tensor:
    """View the activations as one matrix of samples for each filter, (F, N, D), in float32 at least."""
    acts = acts if acts.dtype == torch.float64 else acts.float()
    return acts.reshape(*acts.shape[:2], math.prod(acts.shape[2:])).transpose(0, 1)


def _distances(points: Tensor) -> Tensor:
    """Return |x_i - x_j| for each matrix of a batch: (..., N, D) to (..., N, N)."""
    # float64 is the oracle: exact distances. float32 is the baseline: the fast default, as users write it.
    exact = points.dtype == torch.float64
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist_if_necessary"
    return torch.cdist(points, points, compute_mode=mode)


def _gaussian(distances: Tensor, sigma: Tensor | float) -> Tensor:
    """Return exp(-d^2 / sigma^2). HRel's convention: no factor 2."""
    return torch.exp(-((distances / sigma) ** 2))


def _label_gram(labels: Tensor, label_sigma: float, dtype: torch.dtype) -> Tensor:
    """Return the Gaussian Gram matrix (N, N) of the one-hot labels."""
    one_hot = (labels[:, None] == labels.unique()).to(dtype)  # (N, C)
    return _gaussian(_distances(one_hot), label_sigma)


def _entropy(gram: Tensor, alpha: float) -> Tensor:
    """Return the Renyi entropy in bits of positive semidefinite matrices of trace 1: (..., N, N) to (...)."""
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)  # (..., N); a negative one is rounding
    beta = alpha - 1
    if beta == 0:
        return -torch.special.xlogy(eigenvalues, eigenvalues).sum(-1) / math.log(2)
    if abs(beta) <= 0.3:  # the other form divides the rounding of the sum by 1 - alpha, this one cancels far from 1
        log = eigenvalues.clamp(min=torch.finfo(gram.dtype).tiny).log()  # finite, and multiplied by 0 where lambda is 0
        return -torch.log1p((eigenvalues * torch.expm1(beta * log)).sum(-1)) / (beta * math.log(2))
    largest = eigenvalues[..., -1:]  # (..., 1), taken out because lambda^alpha underflows for a large alpha
    power_sum = ((eigenvalues / largest) ** alpha).sum(-1)  # (...)
    return largest[..., 0].log2() * (alpha / (1 - alpha)) + power_sum.log2() / (1 - alpha)
