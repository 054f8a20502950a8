"""The relevance of filters: mutual information of their maps with the labels."""
# SPDX-License-Identifier: MIT

from typing import NamedTuple

import numpy as np
from torch import Tensor

from hrel_ext import _ops
from hrel_ext._batch import SIGMA_RULE, Batch, check_finite, check_widths, positive, prepare, read, widths
from hrel_ext.label_entropy import label_entropy
from hrel_ext.width import aligned_width


class RelevanceTerms(NamedTuple):
    """The relevance and the entropies it is made of, in bits: relevance = entropy + label_entropy - joint_entropy."""

    relevance: Tensor  # (F,) I(A_f; B)
    entropy: Tensor  # (F,) S(A_f)
    joint_entropy: Tensor  # (F,) S(A_f, B)
    label_entropy: Tensor  # () S(B)


def relevance(
    acts: Tensor,
    labels: Tensor,
    *,
    sigma: float | Tensor | str | None = None,
    alpha: float = 1.01,
    label_sigma: float = 0.1,
) -> Tensor:
    """Score each filter by its mutual information with the labels, in bits, all filters at once.

    For filter f with samples x_1 .. x_N (the flattened maps ``acts[:, f]``),

        K_ij = exp(-|x_i - x_j|^2 / sigma^2),   A = K / N,   I(A; B) = S(A) + S(B) - S(A o B / tr(A o B)),
        S(A) = log2(sum_k lambda_k(A)^alpha) / (1 - alpha),

    where B_ij is exp(-|y_i - y_j|^2 / label_sigma^2) / N for one-hot labels y. Note sigma^2, not 2 sigma^2: HRel's
    convention. The estimate is biased: compare it within one layer and one N only.

    Args:
        acts: (N, F), (N, F, L), (N, F, H, W) or (N, F, T, H, W), float32 or float64 (half precision is computed in
            float32), any strides; never modified. An input that requires grad is detached. On a CUDA device that the
            compiled kernels do not run on, or with more samples than they take, plain PyTorch computes there, by
            eigenvalues.
        labels: (N,), integer class ids >= 0 on the same device; compared for equality only.
        sigma: kernel width > 0, one number or a tensor (F,); None or "layer" takes the width of the layer that aligns
            best with the labels of this batch, as HRel does; "filter" one per filter by the same rule.
        alpha: order of the entropy, > 0; 1 is the Shannon limit, which HRel's published code uses.
        label_sigma: width of the label kernel; up to 0.2 it is 1 within a class and 0 across to all digits.

    Returns:
        (F,), bits, on the device of ``acts``; float64 for float64 input, else float32. Not differentiable.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also where a value of ``acts`` is not
        finite.

    Source: Sarvani, Ghorai, Dubey, Basha, HRel, Neural Networks 147 (2022), doi 10.1016/j.neunet.2021.12.017.
    """
    return relevance_terms(acts, labels, sigma=sigma, alpha=alpha, label_sigma=label_sigma).relevance


def relevance_terms(
    acts: Tensor,
    labels: Tensor,
    *,
    sigma: float | Tensor | str | None = None,
    alpha: float = 1.01,
    label_sigma: float = 0.1,
) -> RelevanceTerms:
    """``relevance`` with the entropies it is made of: I(A_f; B) = S(A_f) + S(B) - S(A_f, B), in bits.

    Args:
        acts, labels, sigma, alpha, label_sigma: as for ``relevance``.

    Returns:
        ``relevance``, ``entropy`` S(A) and ``joint_entropy`` S(A, B), each (F,), and ``label_entropy`` S(B), ().

    Raises:
        TypeError, ValueError: as ``relevance``.

    Source: as ``relevance``.
    """
    return terms_of_batch(prepare(acts, labels, label_sigma), sigma, alpha)


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
    labels_only = entropy.new_full((), label_entropy(np.diff(class_offsets), batch.across, alpha))
    return RelevanceTerms(difference + labels_only, entropy, joint_entropy, labels_only)


def filter_widths(sigma: float | Tensor | str | None, batch: Batch) -> Tensor:
    """One width per filter, (F,), whatever form it is given in."""
    if sigma is not None and not isinstance(sigma, str):
        return widths(sigma, batch.acts)
    if sigma not in (None, "layer", "filter"):
        raise ValueError(f"{SIGMA_RULE}, got {sigma!r}")
    if sigma == "filter":
        return aligned_width(batch, per_filter=True)
    return aligned_width(batch, per_filter=False).repeat(batch.acts.shape[1])
