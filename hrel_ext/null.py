"""The label-permutation null of the relevance: how much of it labels without any meaning would give as well."""
# SPDX-License-Identifier: MIT

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hrel_ext import _ops
from hrel_ext._batch import Batch, positive, prepare
from hrel_ext.relevance import filter_widths, terms_of_batch

# Rounding of an estimate, in bits: what is closer than that counts as equal, by the dtype of the results.
_RESOLUTION_BITS = {torch.float32: 2e-5, torch.float64: 1e-10}


@dataclass(frozen=True, eq=False)
class PermutationNull:
    """Relevances (F,) beside those of R random permutations of the labels, (R, F), in bits.

    The properties compare the two, filter by filter. Differences below the rounding of the estimates, 2e-5 bits in
    float32 and 1e-10 bits in float64, count as none. For the mean over several mini-batches make one of the means of
    both tensors, draw r with draw r: every draw then is a permutation within each mini-batch.

    Args:
        relevance: (F,), bits, of the labels as they are.
        null: (R, F), bits, R >= 1; row r of the r-th permutation of the labels, the same one for every filter.

    Raises:
        ValueError: where the shapes do not fit.

    Source: Phipson, Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010), doi 10.2202/1544-6115.1585, for the p-value.

    Example:
        >>> null = PermutationNull(torch.tensor([0.9, 0.5]), torch.tensor([[0.4, 0.4], [0.5, 0.5], [0.6, 0.6]]))
        >>> [[round(value, 3) for value in values.tolist()] for values in (null.debiased, null.z, null.p_value)]
        [[0.4, 0.0], [4.0, 0.0], [0.25, 0.75]]
    """

    relevance: Tensor  # (F,)
    null: Tensor  # (R, F)

    def __post_init__(self) -> None:
        shape = tuple(self.relevance.shape)
        if len(shape) != 1 or self.null.dim() != 2 or self.null.shape[1:] != shape or len(self.null) == 0:
            raise ValueError(
                f"relevance must have shape (F,) and null (R, F) with R >= 1, got {shape} and {tuple(self.null.shape)}"
            )

    @property
    def mean(self) -> Tensor:
        """Mean of the null, (F,), bits: the bias of the relevance where a filter knows nothing of the labels."""
        return self.null.mean(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the null with R - 1 in the denominator, (F,), bits; NaN for R = 1."""
        return self.null.std(0) if len(self.null) > 1 else torch.full_like(self.relevance, torch.nan)

    @property
    def debiased(self) -> Tensor:
        """relevance - mean, (F,), bits; about 0 for a filter that knows nothing of the labels."""
        return self.relevance - self.mean

    @property
    def z(self) -> Tensor:
        """debiased / std, (F,); 0 where both are rounding, as of a filter that never fires; NaN for R = 1."""
        debiased, std, resolution = self.debiased, self.std, _RESOLUTION_BITS[self.relevance.dtype]
        return torch.where((std <= resolution) & (debiased.abs() <= resolution), 0, debiased / std)

    @property
    def p_value(self) -> Tensor:
        """(1 + #{r: null_r >= relevance}) / (R + 1), (F,), of (0, 1]; 1 for a filter that never fires.

        The chance that a filter which knows nothing of the labels has a relevance as large: it is valid for any R, and
        never below 1 / (R + 1).
        """
        at_least = self.null >= self.relevance - _RESOLUTION_BITS[self.relevance.dtype]  # (R, F)
        return (1 + at_least.sum(0)).to(self.relevance.dtype) / (len(self.null) + 1)


def permutation_null(
    acts: Tensor,
    labels: Tensor,
    *,
    permutations: int = 100,
    sigma: float | Tensor | str | None = None,
    alpha: float = 1.01,
    label_sigma: float = 0.1,
    seed: int = 0,
) -> PermutationNull:
    """Compare the relevance of each filter with what it is for permuted labels, which it cannot know.

        null_rf = S(A_f) + S(B) - S(A_f, B_r),   B_r the kernel of the r-th permutation of the labels.

    A permutation changes neither S(A) nor S(B), so only joint entropies are computed anew, and of these, as long as the
    label kernel is 1 within a class and 0 across, only the blocks of the classes. All filters get the same
    permutations, drawn on the CPU: the same seed gives the same ones on every device.

    Args:
        acts: (N, F), (N, F, L), (N, F, H, W) or (N, F, T, H, W), as for `hrel_ext.relevance`; never modified.
        labels: (N,), integer class ids >= 0 on the same device.
        permutations: their number R, >= 1.
        sigma: kernel width, as for `hrel_ext.relevance`. One that is aligned with the labels (None, "layer",
            "filter") is found once, for the labels as they are, and kept for every permutation.
        alpha: order of the entropy, > 0.
        label_sigma: width of the label kernel. Above 0.2 every permutation costs a whole relevance.
        seed: of the permutations, >= 0.

    Returns:
        The relevances (F,) and those of the permutations, (R, F), in bits, on the device of ``acts``, in float64 for
        float64 input, else float32; with mean, standard deviation, debiased relevance, z and p-value of each filter.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also where a value of ``acts`` is not
        finite.

    Source: the estimator of Sarvani et al., HRel, doi 10.1016/j.neunet.2021.12.017; the null is this package's own.

    Example:
        >>> labels = torch.arange(40) % 4
        >>> informed = labels[:, None] + torch.linspace(0, 0.5, 40)[:, None]
        >>> acts = torch.cat((informed, torch.zeros(40, 1)), 1)  # the second filter never fires
        >>> null = permutation_null(acts, labels, sigma=1.0, permutations=19)
        >>> [round(value, 2) for value in null.p_value.tolist()]
        [0.05, 1.0]
    """
    for name, value, least in (("permutations", permutations, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    batch = prepare(acts, labels, label_sigma)
    draws = draw_permutations(permutations, len(batch.acts), Generator().manual_seed(seed))  # (R, N)
    return null_of_batch(batch, sigma, alpha, draws.to(batch.acts.device))


def draw_permutations(count: int, num_samples: int, generator: Generator) -> Tensor:
    """Random permutations of 0 .. N - 1, (R, N) int64, from a generator of the CPU."""
    return torch.rand(count, num_samples, dtype=torch.float64, generator=generator).argsort(1)


def null_of_batch(
    batch: Batch, sigma: float | Tensor | str | None, alpha: float, permutations: Tensor
) -> PermutationNull:
    """``permutation_null`` of a batch that is prepared already, for given permutations.

    Args:
        batch: of `prepare`.
        sigma, alpha: as for ``permutation_null``.
        permutations: (R, N) int64 on the device of the batch. Row r says which of the samples, sorted by class, take
            the labels of the sorted ones: those of a class from k to l - 1 go to the samples ``row[k:l]``.

    Raises:
        TypeError, ValueError: as ``permutation_null``, for sigma, alpha, and the values of the tensors.
    """
    alpha, widths = positive("alpha", alpha), filter_widths(sigma, batch)  # (F,)
    terms = terms_of_batch(batch, widths, alpha)
    joint_entropy = _permuted_joint_entropy(batch, widths, alpha, permutations)  # (R, F)
    # In the order of `terms.relevance`, so that equal joint entropies give equal bits.
    return PermutationNull(terms.relevance, (terms.entropy - joint_entropy) + terms.label_entropy)


def _permuted_joint_entropy(batch: Batch, widths: Tensor, alpha: float, permutations: Tensor) -> Tensor:
    """S(A_f, B_r) of every permutation, (R, F), bits."""
    order = batch.classes.order  # (N,)
    joint_entropy = widths.new_empty(len(permutations), len(widths))  # (R, F)
    for row, permutation in zip(joint_entropy, permutations, strict=True):
        label_gram = batch.label_gram
        if label_gram is not None:  # in the order of the samples
            source = torch.empty_like(order).scatter_(0, order[permutation], order)  # (N,) whose label a sample takes
            label_gram = label_gram[source][:, source]
        row.copy_(
            _ops.relevance(batch.acts, order[permutation], batch.classes.class_offsets, widths, alpha, label_gram)[1]
        )
    return joint_entropy
