"""The relevance of filters: mutual information of their maps with the labels."""
# SPDX-License-Identifier: MIT

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hrel_ext import _ops
from hrel_ext._batch import (
    DEFAULT_LABEL_SIGMA,
    SIGMA_RULE,
    Batch,
    check_finite,
    check_widths,
    positive,
    prepare,
    read,
    result_dtype,
    widths,
)
from hrel_ext.gram import gram
from hrel_ext.label_entropy import label_entropy
from hrel_ext.width import aligned_width


class RelevanceTerms(NamedTuple):
    """The relevance and the entropies it is made of, in bits: relevance = entropy + label_entropy - joint_entropy.

    Attributes:
        relevance: (F,), I(A_f; B).
        entropy: (F,), S(A_f).
        joint_entropy: (F,), S(A_f, B).
        label_entropy: (), S(B).

    Source: as `relevance`.

    Example:
        >>> hrel_ext.relevance_terms(torch.zeros(4, 1), torch.tensor([0, 0, 1, 1]), sigma=1.0).label_entropy.item()
        1.0
    """

    relevance: Tensor  # (F,) I(A_f; B)
    entropy: Tensor  # (F,) S(A_f)
    joint_entropy: Tensor  # (F,) S(A_f, B)
    label_entropy: Tensor  # () S(B)


def relevance(
    acts: Tensor,
    labels: Tensor | None = None,
    *,
    label_gram: Tensor | None = None,
    sigma: float | Tensor | str | None = None,
    alpha: float = 1.01,
    label_sigma: float = DEFAULT_LABEL_SIGMA,
    differentiable: bool = False,
) -> Tensor:
    """Score each filter by its mutual information with the labels, in bits, all filters at once.

    For filter f with samples x_1 .. x_N (the flattened maps ``acts[:, f]``),

        K_ij = exp(-|x_i - x_j|^2 / sigma^2),   A = K / N,   I(A; B) = S(A) + S(B) - S(A o B / tr(A o B)),
        S(A) = log2(sum_k lambda_k(A)^alpha) / (1 - alpha),

    where B_ij is exp(-|y_i - y_j|^2 / label_sigma^2) / N for one-hot labels y. Note sigma^2, not 2 sigma^2: HRel's
    convention. The estimate is biased: compare it within one layer and one N only.

    Args:
        acts: (N, F), (N, F, L), (N, F, H, W) or (N, F, T, H, W), float32 or float64 (half precision is computed in
            float32), any strides; never modified. On a CUDA device that the compiled kernels do not run on, or with
            more samples than they take, plain PyTorch computes there, by eigenvalues.
        labels: (N,), integer class ids >= 0 on the same device; compared for equality only.
        label_gram: (N, N), in the place of ``labels``: a positive semidefinite kernel of any targets on the same
            device, say `hrel_ext.gram` of class probabilities, of many labels at once, or of a target of regression. It
            is scaled to a diagonal of 1. Where it then is 1 within classes and 0 across, exactly, the way of the
            ``labels`` is taken, as fast and as exact.
        sigma: kernel width > 0, one number or a tensor (F,); None or "layer" takes the width of the layer that aligns
            best with the labels of this batch, as HRel does; "filter" one per filter by the same rule.
        alpha: order of the entropy, > 0; 1 is the Shannon limit, which HRel's published code uses.
        label_sigma: width of the kernel of the ``labels``; up to 0.2 it is 1 within a class and 0 across to all
            digits.
        differentiable: give a result with gradients to ``acts`` and to a tensor ``sigma``; a width that is searched
            is a constant. Much slower: the Gram matrices of some filters at a time are formed, and once more on the
            way back, where each costs an eigen-decomposition. Otherwise inputs that require grad are detached.

    Returns:
        (F,), bits, on the device of ``acts``; float64 for float64 input, else float32.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also where a value of ``acts`` is not
        finite.

    Source: Sarvani, Ghorai, Dubey, Basha, HRel, Neural Networks 147 (2022), doi 10.1016/j.neunet.2021.12.017;
    for a ``label_gram``, Sanchez Giraldo, Rao, Principe, doi 10.1109/TIT.2014.2370058.

    Example:
        >>> labels = torch.arange(8) % 4
        >>> acts = torch.stack((10.0 * labels, torch.zeros(8)), 1)  # one filter knows the class, one never fires
        >>> [abs(round(bits, 4)) for bits in hrel_ext.relevance(acts, labels, sigma=1.0).tolist()]
        [2.0, 0.0]
        >>> target = hrel_ext.gram(labels[:, None].float(), sigma=1.0)  # classes as numbers: neighbours are alike
        >>> [abs(round(bits, 3)) for bits in hrel_ext.relevance(acts, label_gram=target, sigma=1.0).tolist()]
        [1.845, 0.0]
    """
    return relevance_terms(
        acts,
        labels,
        label_gram=label_gram,
        sigma=sigma,
        alpha=alpha,
        label_sigma=label_sigma,
        differentiable=differentiable,
    ).relevance


def relevance_terms(
    acts: Tensor,
    labels: Tensor | None = None,
    *,
    label_gram: Tensor | None = None,
    sigma: float | Tensor | str | None = None,
    alpha: float = 1.01,
    label_sigma: float = DEFAULT_LABEL_SIGMA,
    differentiable: bool = False,
) -> RelevanceTerms:
    """``relevance`` with the entropies it is made of: I(A_f; B) = S(A_f) + S(B) - S(A_f, B), in bits.

    Args:
        acts, labels, label_gram, sigma, alpha, label_sigma, differentiable: as for ``relevance``.

    Returns:
        ``relevance``, ``entropy`` S(A) and ``joint_entropy`` S(A, B), each (F,), and ``label_entropy`` S(B), ().

    Raises:
        TypeError, ValueError: as ``relevance``.

    Source: as ``relevance``.

    Example:
        >>> labels = torch.arange(8) % 4
        >>> terms = hrel_ext.relevance_terms(100.0 * torch.arange(8)[:, None], labels, sigma=1.0)  # all samples differ
        >>> [round(term.item(), 4) for term in terms]  # relevance, S(A), S(A, B), S(B)
        [2.0, 3.0, 3.0, 2.0]
    """
    batch = prepare(acts, labels, label_sigma, label_gram)
    return _differentiable_terms(acts, batch, sigma, alpha) if differentiable else terms_of_batch(batch, sigma, alpha)


def terms_of_batch(batch: Batch, sigma: float | Tensor | str | None, alpha: float) -> RelevanceTerms:
    """``relevance_terms`` of a batch that is prepared already; with a given sigma the host waits once.

    Args:
        batch: of `prepare`.
        sigma, alpha: as for ``relevance``.

    Raises:
        TypeError, ValueError: as ``relevance``, for sigma, alpha, and the values of the tensors.
    """
    alpha = positive("alpha", alpha)
    classes, widths_used = batch.classes, filter_widths(sigma, batch)  # (F,)
    entropy, joint_entropy = _ops.relevance(
        batch.acts, classes.order, classes.class_offsets, widths_used, alpha, batch.label_gram
    )  # (F,), (F,)
    difference = entropy - joint_entropy  # (F,), enqueued before the wait
    own, given, class_offsets = read(batch, entropy, widths_used, classes.class_offsets)
    check_widths(given)  # before the results, which are NaN for a wrong width too
    check_finite(own)
    labels_only = _label_entropy(batch, class_offsets, alpha)
    return RelevanceTerms(difference + labels_only, entropy, joint_entropy, labels_only)


def _differentiable_terms(
    acts: Tensor, batch: Batch, sigma: float | Tensor | str | None, alpha: float
) -> RelevanceTerms:
    """``terms_of_batch`` with gradients to ``acts``, which the batch was made of, and to a tensor ``sigma``."""
    alpha = positive("alpha", alpha)
    detached = filter_widths(sigma, batch)  # (F,)
    given, class_offsets = read(batch, detached, batch.classes.class_offsets)
    check_widths(given)
    labels = batch.classes.labels  # (N,)
    label_gram = batch.label_gram if batch.label_gram is not None else (labels[:, None] == labels[None, :])  # (N, N)

    def entropies(maps: Tensor, some: Tensor) -> tuple[Tensor, Tensor]:
        """Of maps (N, f, D) with widths (f,)."""
        matrices = gram(maps.transpose(0, 1), sigma=some)  # (f, N, N)
        return _ops.matrix_entropy(matrices, alpha), _ops.matrix_entropy(matrices * label_gram, alpha)  # (f,), (f,)

    maps = acts.flatten(2) if acts.dim() > 2 else acts[:, :, None]  # (N, F, D)
    finite = maps.detach().isfinite().all(2).all(0)  # (F,)
    check_finite(np.where(finite.cpu().numpy(), 0, np.nan))
    chosen = sigma.to(detached) if isinstance(sigma, Tensor) else detached  # (F,)
    # Only what a few filters need is kept at a time: their Gram matrices are formed again on the way back.
    step = max(1, _ops.MAX_CHUNK_BYTES // (8 * len(acts) ** 2))
    parts = [
        checkpoint(entropies, maps[:, first : first + step], chosen[first : first + step], use_reentrant=False)
        for first in range(0, maps.shape[1], step)
    ]
    own, joint = (torch.cat([detached[:0], *each]) for each in zip(*parts, strict=True)) if parts else [detached] * 2
    labels_only = _label_entropy(batch, class_offsets, alpha)
    return RelevanceTerms(own - joint + labels_only, own, joint, labels_only)


def _label_entropy(batch: Batch, class_offsets: NDArray, alpha: float) -> Tensor:
    """S(B) in bits, ()."""
    dtype, device = result_dtype(batch.acts), batch.acts.device
    if batch.across is None:
        return _ops.matrix_entropy(batch.label_gram[None], alpha)[0]
    bits = label_entropy(np.diff(class_offsets), batch.across, alpha)
    return torch.full((), bits, dtype=dtype, device=device)


def filter_widths(sigma: float | Tensor | str | None, batch: Batch) -> Tensor:
    """One width per filter, (F,), whatever form it is given in."""
    if sigma is not None and not isinstance(sigma, str):
        return widths(sigma, batch.acts)
    if sigma not in (None, "layer", "filter"):
        raise ValueError(f"{SIGMA_RULE}, got {sigma!r}")
    if sigma == "filter":
        return aligned_width(batch, per_filter=True)
    return aligned_width(batch, per_filter=False).repeat(batch.acts.shape[1])
