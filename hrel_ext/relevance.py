"""The relevance of filters: mutual information of their maps with the labels."""
# SPDX-License-Identifier: MIT

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hrel_ext import _ops
from hrel_ext._batch import (
    LABEL_SIGMA,
    SIGMA_RULE,
    Batch,
    check_finite,
    check_widths,
    flatten_maps,
    positive,
    prepare,
    read,
    same_class,
    widths,
)
from hrel_ext._ops import check_memory
from hrel_ext.gram import gram
from hrel_ext.label_entropy import label_entropy
from hrel_ext.width import aligned_width

# Of the (f, N, N) matrices and (f, N, D) maps, in float64, whose gradients are worked out at a time.
MAX_GRADIENT_BYTES = 32 << 20


class RelevanceTerms(NamedTuple):
    """The relevance and the entropies it is made of, in bits, by filter; the entropy of the labels is one for all.

        relevance = entropy + label_entropy - joint_entropy,   I(A_f; B) = S(A_f) + S(B) - S(A_f, B)

    What `relevance_terms` returns.

    Source: Sanchez Giraldo, Rao, Principe, doi 10.1109/TIT.2014.2370058.

    Example:
        >>> acts, labels = torch.tensor([[0.0], [0.0], [9.0], [9.0]]), torch.tensor([0, 0, 1, 1])
        >>> terms = hrel_ext.relevance_terms(acts, labels, sigma=1.0)  # the map is the label: one bit each
        >>> [round(bits.item(), 4) for bits in terms]
        [1.0, 1.0, 1.0, 1.0]
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
    label_sigma: float = LABEL_SIGMA,
    differentiable: bool = False,
) -> Tensor:
    """Score each filter by its mutual information with the labels, in bits, all filters at once.

    For filter f with samples x_1 .. x_N (the flattened maps ``acts[:, f]``),

        K_ij = exp(-|x_i - x_j|^2 / sigma^2),   A = K / N,   I(A; B) = S(A) + S(B) - S(A o B / tr(A o B)),
        S(A) = log2(sum_k lambda_k(A)^alpha) / (1 - alpha),

    where B_ij is exp(-|y_i - y_j|^2 / label_sigma^2) / N for one-hot labels y, or L_ij / (N sqrt(L_ii L_jj)) for a
    label kernel L. Note sigma^2, not 2 sigma^2: HRel's convention. The estimate is biased: compare it within one layer
    and one N only.

    Args:
        acts: (N, F), (N, F, L), (N, F, H, W) or (N, F, T, H, W), float32 or float64 (half precision is computed in
            float32), any strides; never modified. An input that requires grad is detached unless ``differentiable``. On
            a CUDA device that the compiled kernels do not run on, or with more samples than they take, plain PyTorch
            computes there, by eigenvalues.
        labels: (N,), integer class ids >= 0 on the same device; compared for equality only.
        label_gram: (N, N), float32 or float64 on the same device, in the place of ``labels``: a symmetric, positive
            semidefinite kernel L with a diagonal > 0, of soft labels p, say `gram` of them or p @ p.T, of several
            labels a sample, or of regression targets. Where it is 1 within classes and 0 across once its diagonal is
            scaled to 1, the result is, bit for bit, that of class ids in the order of first appearance. The host waits
            for its check. A constant for the gradient.
        sigma: kernel width > 0, one number or a tensor, (F,) or (); None or "layer" takes the width of the layer that
            aligns best with the labels of this batch, as HRel does; "filter" one per filter by the same rule.
        alpha: order of the entropy, > 0; 1 is the Shannon limit, which HRel's published code uses.
        label_sigma: width of the kernel of ``labels``; up to 0.2 it is 1 within a class and 0 across to all digits.
        differentiable: give the result gradients, once, with respect to ``acts`` and a tensor ``sigma``; a width that
            is searched is a constant. Computed in float64 from whole Gram matrices, of a few filters at a time, which
            the backward pass makes again: memory beside ``acts`` and their gradient is bounded whatever F is, and both
            passes take many times as long as the score alone.

    Returns:
        (F,), bits, on the device of ``acts``; float64 for float64 input, else float32.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also where a value of ``acts`` is not
        finite.

    Source: Sarvani, Ghorai, Dubey, Basha, HRel, Neural Networks 147 (2022), doi 10.1016/j.neunet.2021.12.017; label
    kernels: Sanchez Giraldo, Rao, Principe, doi 10.1109/TIT.2014.2370058.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> acts = torch.stack([labels.float(), torch.tensor([0.0, 1.0, 0.0, 1.0])], dim=1)  # a label, and none
        >>> [round(bits, 4) for bits in hrel_ext.relevance(acts, labels, sigma=0.1).tolist()]
        [1.0, 0.0]
        >>> targets = hrel_ext.gram(torch.tensor([[0.1], [0.0], [0.8], [1.0]]), sigma=0.5)  # of a regression
        >>> [round(bits, 2) for bits in hrel_ext.relevance(acts, label_gram=targets, sigma=0.1).tolist()]
        [0.99, 0.25]
        >>> acts = acts.requires_grad_()
        >>> hrel_ext.relevance(acts, labels, sigma=1.0, differentiable=True).sum().backward()
        >>> acts.grad.shape
        torch.Size([4, 2])
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
    label_sigma: float = LABEL_SIGMA,
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
        >>> acts, labels = torch.tensor([[0.0], [9.0], [0.0], [9.0]]), torch.tensor([0, 0, 1, 1])
        >>> terms = hrel_ext.relevance_terms(acts, labels, sigma=1.0)  # independent: one bit each, two together
        >>> round(terms.entropy.item(), 4), round(terms.label_entropy.item(), 4), round(terms.joint_entropy.item(), 4)
        (1.0, 1.0, 2.0)
    """
    batch = prepare(acts, labels, label_sigma, label_gram)
    return _differentiable_terms(acts, batch, sigma, alpha) if differentiable else terms_of_batch(batch, sigma, alpha)


def terms_of_batch(batch: Batch, sigma: float | Tensor | str | None, alpha: float) -> RelevanceTerms:
    """``relevance_terms`` of a batch that is prepared already; with a given sigma the host waits once.

    On the CPU, where nothing is waited for, the labels and the widths are checked before the work, and else after it.

    Args:
        batch: of `prepare`.
        sigma, alpha: as for ``relevance``.

    Raises:
        TypeError, ValueError: as ``relevance``, for sigma, alpha, and the values of the tensors.
    """
    alpha, sigma = positive("alpha", alpha), filter_widths(sigma, batch)  # (F,)
    if batch.on_host:
        return _terms_of_labels(batch, sigma, alpha)
    entropy, joint_entropy = _ops.relevance(
        batch.acts, batch.classes.order, batch.classes.class_offsets, sigma, alpha, batch.label_gram
    )  # (F,), (F,)
    difference = entropy - joint_entropy  # (F,), enqueued before the wait
    own, given, class_offsets = read(batch, entropy, sigma, batch.classes.class_offsets)
    check_widths(given)  # before the results, which are NaN for a wrong width too
    check_finite(own)
    labels_only = _label_entropy(batch, class_offsets, alpha, sigma)  # ()
    return RelevanceTerms(difference + labels_only, entropy, joint_entropy, labels_only)


def _terms_of_labels(batch: Batch, sigma: Tensor, alpha: float) -> RelevanceTerms:
    """``terms_of_batch`` on the CPU for widths (F,) and labels that are 1 within a class and 0 across."""
    proper, terms = _ops.relevance_terms(batch.acts, batch.classes.labels, sigma, alpha)
    if not proper:
        check_widths(*read(batch, sigma))
        check_finite(terms[1].tolist())
    return RelevanceTerms(*terms)


def _label_entropy(batch: Batch, class_offsets: list[int], alpha: float, like: Tensor) -> Tensor:
    """S(B) in bits, (), of the dtype and device of ``like``."""
    if batch.across is not None:
        return like.new_full((), label_entropy(class_offsets, batch.across, alpha))
    label_gram = cast(Tensor, batch.label_gram)
    # float64: a matrix of rank one whose rows sum to 0, as signs have, would lose digits in float32.
    return _ops.matrix_entropy(label_gram.double()[None], alpha)[0].to(like.dtype)


def _differentiable_terms(
    acts: Tensor, batch: Batch, sigma: float | Tensor | str | None, alpha: float
) -> RelevanceTerms:
    """The terms of ``acts``, from which ``batch`` was prepared, with gradients to them and to a tensor ``sigma``."""
    alpha = positive("alpha", alpha)
    check_memory(f"acts of N = {len(acts)} samples", 8 * len(acts) ** 2, acts.device)  # one Gram matrix in float64
    maps, found = flatten_maps(acts).transpose(0, 1), filter_widths(sigma, batch)  # (F, N, D), (F,)
    nan_if_not_finite = (batch.acts * 0).sum((0, 2), dtype=found.dtype)  # (F,)
    marks, given, class_offsets = read(batch, nan_if_not_finite, found, batch.classes.class_offsets)
    check_widths(given)
    check_finite(marks)
    sigma = sigma.to(found.dtype).expand(len(maps)) if isinstance(sigma, Tensor) else found  # (F,)
    labels = same_class(batch.classes.labels) if batch.label_gram is None else batch.label_gram  # (N, N)

    def entropies(maps: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        kernel = gram(maps.double(), sigma=sigma)  # (f, N, N)
        return _ops.matrix_entropy(kernel, alpha), _ops.matrix_entropy(kernel * labels, alpha)

    step = max(1, MAX_GRADIENT_BYTES // (8 * maps.shape[1] * (maps.shape[1] + maps.shape[2])))
    parts = [
        checkpoint(entropies, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(maps.split(step), sigma.split(step), strict=True)
    ]
    entropy, joint_entropy = (torch.cat(part) for part in zip(*parts, strict=True))  # (F,), (F,)
    labels_only = _label_entropy(batch, class_offsets, alpha, entropy)
    terms = (entropy + labels_only - joint_entropy, entropy, joint_entropy, labels_only)
    return RelevanceTerms(*(term.to(found.dtype) for term in terms))


def filter_widths(sigma: float | Tensor | str | None, batch: Batch) -> Tensor:
    """One width per filter, (F,), whatever form it is given in."""
    if sigma is not None and not isinstance(sigma, str):
        return widths(sigma, batch.acts)
    if sigma not in (None, "layer", "filter"):
        raise ValueError(f"{SIGMA_RULE}, got {sigma!r}")
    if sigma == "filter":
        return aligned_width(batch, per_filter=True)
    return aligned_width(batch, per_filter=False).repeat(batch.acts.shape[1])
