"""Sets of filters: what a set tells about the labels together, and which filters to keep by it.

The kernel of a set S is the product of the kernels of its filters, so that squared distances add:

    K_S,ij = exp(-sum_f |x_f,i - x_f,j|^2 / sigma_f^2),   I(T_S; Y) = S(A_S) + S(B) - S(A_S o B / tr(A_S o B)), bits.

A copy of a filter is a function of it and tells nothing more, but its distances narrow K_S, which raises the estimate.
So copies are found by their distances: their conditional relevance is 0, and a selection leaves them to the end.
"""
# SPDX-License-Identifier: MIT

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from operator import index
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrel_ext import _ops
from hrel_ext._batch import RESOLUTION_BITS, check_finite, check_widths, positive, prepare, read
from hrel_ext._ops import check_memory
from hrel_ext.label_entropy import label_entropy
from hrel_ext.relevance import filter_widths

METHODS = ("forward", "backward")
LARGEST_EXPONENT = 1024.0  # exp(-1024) is 0 in float64: a sum of exponents cut here gives the same kernel, never inf
# What may be left of a filter's kernel, as a share of its variance over pairs of samples, once that of the filter it is
# a copy of is taken away. With 10 % of noise, a copy of 16 values a map or more leaves up to 0.03; a filter of
# a trained LeNet-5 leaves 0.045 or more of any other.
LEFT_OF_COPY = 0.03
ROUNDING_OF_COPY = 1e-12  # of the sum of squares of float64 numbers, added up in different orders


@dataclass(frozen=True, eq=False)
class Selection:
    """The filters that `select_filters` keeps, and how it came to them.

    Args:
        kept: (keep,) int64, the filters kept, ascending, on the CPU.
        order: the filters in the order in which they were taken, (keep,), or removed, (F - keep,); int64, on the CPU.
        objective: (len(order),) float64, bits: the joint relevance of the set after each of these steps, the mean over
            the mini-batches.

    Source: as ``select_filters``.

    Example:
        >>> acts, labels = torch.eye(4), torch.arange(4)
        >>> selection = hrel_ext.select_filters((acts, labels), keep=2, sigma=1.0)
        >>> selection.kept.tolist(), selection.order.tolist(), round(selection.objective[-1].item(), 2)
        ([0, 1], [0, 1], 1.36)
    """

    kept: Tensor  # (keep,)
    order: Tensor  # (steps,)
    objective: Tensor  # (steps,)


def joint_relevance(
    acts: Tensor,
    labels: Tensor,
    subset: Iterable[int] | Tensor,
    *,
    sigma: float | Tensor | str | None = None,
    alpha: float = 1.01,
    label_sigma: float = 0.1,
) -> Tensor:
    """What a set S of filters tells about the labels together, in bits.

        I(T_S; Y) = S(A_S) + S(B) - S(A_S o B / tr(A_S o B)),   A_S = K_S / N,
        K_S,ij = exp(-sum_{f in S} |x_f,i - x_f,j|^2 / sigma_f^2).

    For one filter it is ``relevance``. For all filters and one width it is the relevance of the layer's output taken
    as one map, copies included: two copies are one filter of a width narrower by sqrt(2), for which the estimate is
    larger, though they tell no more than one. It tends to S(B) where so many distances add up that K_S is nearly the
    identity: compare sets of one size without copies only, and see ``select_filters`` on the width.

    Args:
        acts: (N, F, *spatial), floating point, any strides; never modified.
        labels: (N,), integer class ids >= 0 on the same device.
        subset: the filters of S, each once, in any order; the empty set has relevance 0.
        sigma: width of each filter's kernel, as in ``relevance``: a number, a tensor (F,), None or "layer" for the
            aligned width of the whole layer, "filter" for that of each filter.
        alpha: order of the entropy, > 0; 1 is the Shannon limit.
        label_sigma: width of the label kernel.

    Returns:
        (), bits, on the device of ``acts``; float64 for float64 input, else float32. Not differentiable.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also where a value of ``acts`` is not
        finite.

    Source: S. Yu, L. G. Sanchez Giraldo, R. Jenssen, J. C. Principe, IEEE TPAMI 42 (2020),
    doi 10.1109/TPAMI.2019.2932976: the entropy of several variables.

    Example:
        >>> # Two filters, each of which tells one bit of the two that make a class.
        >>> labels = torch.arange(8) % 4
        >>> acts = torch.stack([labels // 2, labels % 2], dim=1).float()  # (8, 2)
        >>> sets = ([], [0], [1], [0, 1])
        >>> [round(hrel_ext.joint_relevance(acts, labels, subset, sigma=0.1).item(), 3) for subset in sets]
        [0.0, 1.0, 1.0, 2.0]
    """
    chosen = _filters("subset", subset, acts)
    task = _task(acts, labels, chosen, sigma=sigma, alpha=alpha, label_sigma=label_sigma)
    if len(chosen) == 0:
        return task.exponents.new_zeros(())
    together = _sum_of(task, range(len(chosen)))
    return task.relevances(together.value.exp()[None])[0].to(task.exponents.dtype)


def conditional_relevance(
    acts: Tensor,
    labels: Tensor,
    given: Iterable[int] | Tensor,
    *,
    sigma: float | Tensor | str | None = None,
    alpha: float = 1.01,
    label_sigma: float = 0.1,
) -> Tensor:
    """What each filter tells about the labels that a set S of filters does not tell already, in bits.

        I(T_f; Y | T_S) = I(T_{S + f}; Y) - I(T_S; Y) = S(A_{S+f}) + S(A_S, B) - S(A_{S+f}, B) - S(A_S)

    It is 0 for a copy of a filter of S, whatever I(T_{S + f}; Y) is: what is computed from T_S alone tells nothing new.
    A copy is a filter whose distances are a multiple of the other's but for 3 % of their variance, as those of a scaled
    copy are, and with 10 % of noise still (docs/math.md). The result can be negative for other filters. Those of
    filters added one after the other sum to their joint relevance, if none is a copy of one before.

    Args:
        acts: (N, F, *spatial), floating point, any strides; never modified.
        labels: (N,), integer class ids >= 0 on the same device.
        given: the filters of S, each once, in any order; with the empty set the result is ``relevance``.
        sigma, alpha, label_sigma: as for ``joint_relevance``.

    Returns:
        (F,), bits, on the device of ``acts``, 0 for the filters of S and their copies; float64 for float64 input, else
        float32. Not differentiable.

    Raises:
        TypeError, ValueError: as ``joint_relevance``.

    Source: as ``joint_relevance``.

    Example:
        >>> # Given the first filter, its copy tells nothing, the third one bit.
        >>> labels = torch.arange(8) % 4
        >>> acts = torch.stack([labels // 2, labels // 2, labels % 2], dim=1).float()  # (8, 3)
        >>> [round(bits, 3) for bits in hrel_ext.conditional_relevance(acts, labels, [0], sigma=0.1).tolist()]
        [0.0, 0.0, 1.0]
    """
    held = _filters("given", given, acts)
    task = _task(acts, labels, None, sigma=sigma, alpha=alpha, label_sigma=label_sigma)
    others = np.flatnonzero(~_copies([task], held).any(1))  # (n,), not in S either
    together = _sum_of(task, held)
    result = task.exponents.new_zeros(len(task.exponents))  # (F,)
    added = task.relevances_with(together, others) - task.relevances(together.value.exp()[None])  # (n,), float64
    result[torch.from_numpy(others).to(acts.device)] = added.to(result)
    return result


def select_filters(
    batches: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    *,
    keep: int,
    method: str = "forward",
    sigma: float | Tensor | str | None = None,
    alpha: float = 1.01,
    label_sigma: float = 0.1,
) -> Selection:
    """Choose ``keep`` filters that tell much about the labels together, one at a time.

    "forward" starts with no filter and takes the one that makes I(T_S; Y) largest, "backward" starts with all and
    removes the one without which I(T_S; Y) stays largest; over several mini-batches it is the mean. Copies, as in
    ``conditional_relevance`` but by the distances in all mini-batches together, wait: of several, the one of the higher
    relevance of its own takes part, or of equal ones that of the lower index. The others are taken when no filter is
    left that is not a copy, or removed before all that are not, in the same way. A dead filter is a copy of any.

    Joint relevances closer than the rounding of the estimate, 4e-5 bits in float32 and 2e-10 in float64, are equal:
    then the filter of the higher relevance of its own is kept, and of two equal ones that of the lower index. With a
    narrow width K_S soon is nearly the identity, I(T_S; Y) nearly S(B) whatever S, and this rule decides. With the
    width of the layer the distances of all filters add up to what the width was aligned for. The forward search costs
    about keep F - keep^2 / 2 entropies of N x N matrices a mini-batch, the backward one (F^2 - keep^2) / 2; 4 F N^2
    bytes are held for each mini-batch in float32, and 8 F N^2 more for one of them while copies are looked for.

    Args:
        batches: (acts, labels), or an iterable of such pairs: acts (N, F, *spatial) and labels (N,) as for
            ``relevance``, with the same N and F in all of them.
        keep: number of filters to keep, 1 to F.
        method: "forward" or "backward".
        sigma: as for ``joint_relevance``; an aligned width is that of each mini-batch.
        alpha: order of the entropy, > 0; 1 is the Shannon limit.
        label_sigma: width of the label kernel.

    Returns:
        `Selection`: ``kept``, ``order`` and ``objective``.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value; also where a value of ``acts`` is not
        finite.

    Source: as ``joint_relevance``; G. Brown, A. Pocock, M.-J. Zhao, M. Lujan, JMLR 13 (2012), for the two searches.

    Example:
        >>> # Filters 0 and 1 are copies, filter 2 tells the other bit.
        >>> labels = torch.arange(8) % 4
        >>> acts = torch.stack([labels // 2, labels // 2, labels % 2], dim=1).float()  # (8, 3)
        >>> hrel_ext.select_filters((acts, labels), keep=2, sigma=0.1).kept.tolist()
        [0, 2]
    """
    if method not in METHODS:
        raise ValueError(f'method must be "forward" or "backward", got {method!r}')
    tasks = _tasks(batches, sigma=sigma, alpha=alpha, label_sigma=label_sigma)
    num_filters = len(tasks[0].exponents)
    if not isinstance(keep, int) or isinstance(keep, bool):
        raise TypeError(f"keep must be an int, got {type(keep).__name__}")
    if not 1 <= keep <= num_filters:
        raise ValueError(f"keep must be between 1 and the number of filters, F = {num_filters}, got {keep}")
    alone = _mean(tasks, [_sum_of(task, ()) for task in tasks], np.arange(num_filters))  # (F,)
    distinct, copies = _part(_copies(tasks, np.arange(num_filters)), alone)
    search, groups = (_forward, (distinct, copies)) if method == "forward" else (_backward, (copies, distinct))
    kept, order, objective = search(tasks, alone, groups, keep)
    return Selection(
        torch.tensor(sorted(kept)),
        torch.tensor(order, dtype=torch.int64),
        torch.tensor(objective, dtype=torch.float64),
    )


class _Sum(NamedTuple):
    """A sum of exponents (N, N) in two floats, so that whatever is added can be taken away again without a trace."""

    value: Tensor  # (N, N)
    rest: Tensor  # (N, N), what rounding left out of ``value``

    def plus(self, term: Tensor) -> "_Sum":
        """The sum and one more term (N, N), which may be negative, to twice the digits of the dtype."""
        rough = self.value + term
        part = rough - self.value
        rest = self.rest + ((self.value - (rough - part)) + (term - part))
        value = rough + rest
        return _Sum(value, rest - (value - rough))


@dataclass(frozen=True, eq=False)
class _Task:
    """One mini-batch, its samples sorted by class: the exponents of all kernels and what the joint entropies take."""

    exponents: Tensor  # (F, N, N), -|x_i - x_j|^2 / sigma^2, not below -LARGEST_EXPONENT
    class_sizes: list[int]  # (C,), none of them 0
    label_gram: Tensor | None  # (N, N), or None where it is 1 within a class and 0 across
    label_entropy: float  # S(B), bits
    alpha: float

    def relevances_with(self, together: _Sum, filters: NDArray[np.int64], *, without: bool = False) -> Tensor:
        """I(T_S+f; Y) of each filter f of ``filters``, or I(T_S-f; Y), from the sum of S: (n,), float64, bits."""
        num_samples = len(together.value)
        step = max(1, _ops.MAX_CHUNK_BYTES // (num_samples**2 * self.exponents.element_size()))
        parts = [self.exponents.new_empty(0, dtype=torch.float64)]
        for some in torch.from_numpy(filters).to(self.exponents.device).split(step):
            gram = self.exponents[some]  # (n, N, N), a copy, the kernels in the end
            if without:
                gram.neg_()
            parts.append(self.relevances(gram.add_(together.value).add_(together.rest).exp_()))
        return torch.cat(parts)

    def relevances(self, gram: Tensor) -> Tensor:
        """I(T_S; Y) of each set whose kernel, of (n, N, N), is given: (n,), float64, bits."""
        entropy = _ops.matrix_entropy(gram, self.alpha).double()  # (n,)
        return entropy + self.label_entropy - self._joint_entropies(gram)

    def _joint_entropies(self, gram: Tensor) -> Tensor:
        """S(A o B) of kernels (n, N, N), in bits, (n,), float64.

        Where B is 1 / N within a class and 0 across, A o B falls into blocks. With A_c that of class c, of trace 1, and
        e_c = S(A_c) - log2 p_c it is log2(sum_c p_c 2^(-beta e_c)) / -beta, in the forms of docs/math.md.
        """
        if self.label_gram is not None:
            return _ops.matrix_entropy(gram * self.label_gram, self.alpha).double()
        first, entropies = 0, []
        for size in self.class_sizes:
            block = gram[:, first : first + size, first : first + size]  # (n, n_c, n_c)
            entropies.append(_ops.matrix_entropy(block, self.alpha).double())
            first += size
        shares = torch.tensor(self.class_sizes, dtype=torch.float64, device=gram.device)[:, None] / first  # (C, 1)
        nats = torch.stack(entropies) * math.log(2) - shares.log()  # (C, n)
        beta = self.alpha - 1
        if beta == 0:
            return (shares * nats).sum(0) / math.log(2)
        if abs(beta) <= 0.3:  # near 1 the quotient below would cancel, far from it this one does
            return (shares * torch.expm1(-beta * nats)).sum(0).log1p() / (-beta * math.log(2))
        return (shares.log() - beta * nats).logsumexp(0) / (-beta * math.log(2))


def _task(
    acts: Tensor,
    labels: Tensor,
    chosen: NDArray[np.int64] | None,
    *,
    sigma: float | Tensor | str | None,
    alpha: float,
    label_sigma: float,
) -> _Task:
    """Check a mini-batch and make the exponents of its filters, or of those ``chosen``, as they stand there."""
    alpha, batch = positive("alpha", alpha), prepare(acts, labels, label_sigma)
    sigma = filter_widths(sigma, batch)  # (F,)
    class_offsets, given = read(batch, batch.classes.class_offsets, sigma)
    check_widths(given)
    filters = np.arange(len(given)) if chosen is None else chosen
    some = torch.from_numpy(filters).to(sigma.device)
    exponents = _exponents(batch.acts, batch.classes.order, some, sigma[some])
    marks = np.zeros(len(given))  # (F,), NaN where a filter that is used holds a value not finite
    marks[filters] = exponents.diagonal(dim1=1, dim2=2).sum(1).cpu().numpy()
    check_finite(marks.tolist())
    return _Task(
        exponents,
        [last - first for first, last in pairwise(class_offsets) if last > first],
        None if batch.label_gram is None else batch.label_gram[batch.classes.order][:, batch.classes.order],
        label_entropy(class_offsets, cast(float, batch.across), alpha),  # there are labels, so it is not None
        alpha,
    )


def _exponents(acts: Tensor, order: Tensor, filters: Tensor, sigma: Tensor) -> Tensor:
    """-|x_i - x_j|^2 / sigma^2 of the kernels (n, N, N) of ``filters`` (n,) with widths (n,), samples in ``order``."""
    limits = torch.finfo(sigma.dtype)
    # Maps are scaled by a power of two that brings sigma near 1: no square overflows or vanishes that matters.
    lowest = round(math.log2(limits.tiny))
    scale = torch.exp2(-torch.frexp(sigma).exponent.clamp(lowest, -lowest).to(sigma))  # (n,)
    num_samples, _, num_features = acts.shape
    num_bytes = len(filters) * num_samples**2 * sigma.element_size()
    check_memory(f"acts of N = {num_samples} samples and {len(filters)} filters", num_bytes, acts.device)
    exponents = sigma.new_empty(len(filters), num_samples, num_samples)
    step = max(1, _ops.MAX_CHUNK_BYTES // (num_samples * max(num_samples, num_features) * sigma.element_size()))
    for first in range(0, len(filters), step):
        part = slice(first, first + step)
        maps = acts[:, filters[part]][order].to(sigma.dtype).transpose(0, 1) * scale[part, None, None]  # (n, N, D)
        # Differences, not products: maps that share an offset or hold an outlier keep their digits.
        distances = torch.cdist(maps, maps, compute_mode="donot_use_mm_for_euclid_dist")  # (n, N, N)
        distances /= (sigma[part] * scale[part])[:, None, None]
        exponents[part] = distances.square_().clamp_(max=LARGEST_EXPONENT).neg_()
    return exponents


def _sum_of(task: _Task, filters: Iterable[int]) -> _Sum:
    """The exponents of the set's kernel: those of its filters, added."""
    nothing = task.exponents.new_zeros(task.exponents.shape[1:])  # (N, N)
    together = _Sum(nothing, nothing)
    for f in filters:
        together = together.plus(task.exponents[f])
    return together


def _filters(name: str, filters: Iterable[int] | Tensor, acts: Tensor) -> NDArray[np.int64]:
    """The indices of a set of filters, (n,) int64, ascending."""
    if not isinstance(acts, Tensor) or acts.dim() < 2:
        return np.zeros(0, dtype=np.int64)  # `prepare` says what is wrong with acts
    try:
        given = list(filters.tolist() if isinstance(filters, Tensor) else filters)
        if any(isinstance(f, bool) for f in given):
            raise TypeError("a mask")  # whose values would pass as the filters 0 and 1
        given = [index(f) for f in given]
    except TypeError as error:
        raise TypeError(f"{name} must hold the indices of filters, integers, got {filters!r}") from error
    for f in given:
        if not 0 <= f < acts.shape[1]:
            raise ValueError(f"{name} must hold indices of filters, 0 to F - 1 = {acts.shape[1] - 1}, got {f}")
    for f in given if len(set(given)) < len(given) else ():
        if given.count(f) > 1:
            raise ValueError(f"{name} must hold each filter once, got {f} {given.count(f)} times")
    return np.array(sorted(given), dtype=np.int64)


def _tasks(
    batches: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    *,
    sigma: float | Tensor | str | None,
    alpha: float,
    label_sigma: float,
) -> list[_Task]:
    """The mini-batches, checked; a single one may come without a list around it."""
    if isinstance(batches, (tuple, list)) and any(isinstance(part, Tensor) for part in batches):
        batches = [cast(tuple[Tensor, Tensor], batches)]
    tasks: list[_Task] = []
    for acts, labels in batches:
        task = _task(acts, labels, None, sigma=sigma, alpha=alpha, label_sigma=label_sigma)
        expected, got = (tasks[0] if tasks else task).exponents.shape, task.exponents.shape
        if got != expected:
            raise ValueError(
                f"batches must all have N = {expected[1]} samples and F = {expected[0]} filters like the first, "
                f"got N = {got[1]} and F = {got[0]} in batch {len(tasks)}"
            )
        tasks.append(task)
    if not tasks:
        raise ValueError("batches must hold at least one mini-batch, got none")
    return tasks


def _copies(tasks: list[_Task], filters: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which filters are copies of which of ``filters`` (n,), or are the same: (F, n), bool.

    With v_f = 1 - exp(-d^2 / mean(d)^2) of the distances d over all pairs of samples, which no scale of the maps
    changes and no outlier rules, f is a copy of g if |v_f - a v_g|^2 <= LEFT_OF_COPY |v_f - mean(v_f)|^2 for the best
    a. A dead filter, v_f = 0, is a copy of any, and only dead ones are copies of it.
    """
    num_samples, device = tasks[0].exponents.shape[1], tasks[0].exponents.device
    rows, columns = torch.tril_indices(num_samples, num_samples, -1, device=device)  # (P,) each, P = N (N - 1) / 2
    smallest = torch.finfo(torch.float64).tiny  # in the place of 0 below a fraction that is 0
    some = torch.from_numpy(filters).to(device)
    inner = total = size = torch.zeros((), dtype=torch.float64, device=device)
    for task in tasks:
        squared = task.exponents[:, rows, columns].double().neg_()  # (F, P)
        unit = squared.sqrt().mean(1, keepdim=True).square().clamp_min(smallest)  # (F, 1)
        kernel = squared.div_(-unit).expm1_().neg_()  # (F, P), v_f
        inner = inner + kernel @ kernel[some].T  # (F, n)
        total = total + kernel.sum(1)  # (F,)
        size = size + kernel.square().sum(1)  # (F,)
    left = size[:, None] - inner.square() / size[some].clamp_min(smallest)  # (F, n)
    variance = size - total.square() / max(1, len(tasks) * len(rows))  # (F,)
    # Where all distances are equal nothing varies, and rounding alone is left of a copy.
    return (left <= (LEFT_OF_COPY * variance + ROUNDING_OF_COPY * size)[:, None]).cpu().numpy()


def _part(copies: NDArray[np.bool_], alone: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The filters that are no copies of better ones, and those that are, by (F, F) copies and relevances (F,)."""
    distinct: list[int] = []
    for f in sorted(range(len(alone)), key=lambda f: (-alone[f], f)):
        if not copies[f, distinct].any():
            distinct.append(f)
    return np.array(sorted(distinct)), np.setdiff1d(np.arange(len(alone)), distinct)


def _mean(
    tasks: list[_Task], sums: list[_Sum], filters: NDArray[np.int64], *, without: bool = False
) -> NDArray[np.float64]:
    """The objective of each candidate, (n,), float64: the mean over the mini-batches of I(T_S; Y) of its set."""
    parts = [task.relevances_with(t, filters, without=without) for task, t in zip(tasks, sums, strict=True)]  # (n,)
    return torch.stack([part.cpu() for part in parts]).mean(0).numpy()


def _ties(tasks: list[_Task], objective: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of the candidates that are as good as the best one: rounding tells no two apart."""
    resolution = 2 * RESOLUTION_BITS[tasks[0].exponents.dtype]  # a relevance is a difference of two entropies
    return np.flatnonzero(objective >= objective.max() - resolution)


def _forward(
    tasks: list[_Task], alone: NDArray[np.float64], groups: tuple[NDArray[np.int64], NDArray[np.int64]], keep: int
) -> tuple[list[int], list[int], list[float]]:
    """The filters kept, the same in the order taken, and the objective after each step; group by group of filters."""
    sums = [_sum_of(task, ()) for task in tasks]
    taken: list[int] = []
    reached: list[float] = []
    for left in groups:
        while len(left) and len(taken) < keep:
            objective = _mean(tasks, sums, left) if taken else alone[left]
            ties = _ties(tasks, objective)
            best = ties[_ties(tasks, alone[left[ties]])[0]]  # left is in order, so that the lowest filter comes first
            taken.append(int(left[best]))
            reached.append(float(objective[best]))
            sums = [t.plus(task.exponents[taken[-1]]) for task, t in zip(tasks, sums, strict=True)]
            left = np.delete(left, best)
    return taken, taken, reached


def _backward(
    tasks: list[_Task], alone: NDArray[np.float64], groups: tuple[NDArray[np.int64], NDArray[np.int64]], keep: int
) -> tuple[list[int], list[int], list[float]]:
    """The filters kept, those removed in their order, and the objective after each step; group by group of filters."""
    sums = [_sum_of(task, range(len(alone))) for task in tasks]
    removed: list[int] = []
    reached: list[float] = []
    for left in groups:
        while len(left) and len(removed) < len(alone) - keep:
            objective = _mean(tasks, sums, left, without=True)
            ties = _ties(tasks, objective)
            worst = ties[_ties(tasks, -alone[left[ties]])[-1]]
            removed.append(int(left[worst]))
            reached.append(float(objective[worst]))
            sums = [t.plus(-task.exponents[removed[-1]]) for task, t in zip(tasks, sums, strict=True)]
            left = np.delete(left, worst)
    return np.setdiff1d(np.arange(len(alone)), removed).tolist(), removed, reached
