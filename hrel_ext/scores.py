"""The scores of a model's filters as a table, layer x filter x mini-batch, with error bars, and as one file."""
# SPDX-License-Identifier: MIT

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import version
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from hrel_ext import _ranks
from hrel_ext._files import TableFormat, check_tensors
from hrel_ext.null import PermutationNull

SIGNIFICANCE = 0.05  # level of the test whether the filters of a layer can be told apart
MOST_ROWS = 1024  # of a table in memory; enough for error bars and tests, whatever the number of mini-batches


class IndistinguishableScoresWarning(UserWarning):
    """The scores of a layer's filters cannot be told apart by the mini-batches they were made from.

    Example:
        >>> import warnings, torch, hrel_ext
        >>> twice_the_same = torch.nn.Conv2d(1, 2, 3)
        >>> _ = torch.nn.init.ones_(twice_the_same.weight), torch.nn.init.zeros_(twice_the_same.bias)
        >>> batches = [(torch.randn(9, 1, 4, 4), torch.arange(9) % 3) for _ in range(4)]
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = hrel_ext.collect(torch.nn.Sequential(twice_the_same), batches)
        >>> [warning.category.__name__ for warning in caught]
        ['IndistinguishableScoresWarning']
    """


class Agreement(NamedTuple):
    """How far the mini-batches agree on the order of the filters: Friedman's test, see `LayerScores.agreement`.

    Attributes:
        concordance: Kendall's W, from 0 (any order in each mini-batch) to 1 (the same order in all of them).
        p_value: how often filters that do not differ would agree as well as this, or better.

    Source: M. Friedman (1937), Kendall and Babington Smith (1939); see `LayerScores.agreement`. Both are without unit.

    Example:
        >>> import torch, hrel_ext
        >>> layer = hrel_ext.LayerScores(torch.tensor([[1.0, 2.0, 3.0]] * 4), widths=torch.ones(4))
        >>> concordance, p_value = layer.agreement
        >>> round(concordance, 3), round(p_value, 3)
        (1.0, 0.01)
    """

    concordance: float
    p_value: float


class Rows:
    """Rows of numbers, one for each mini-batch of a pass, gathered in bounded memory and by several ranks.

    Up to 1024 rows are kept, 4 F bytes each for F scores in float32. Of more mini-batches every second row goes, as
    often as it takes, so that those of the mini-batches 0, s, 2 s, ... are left, s a power of 2, and at least 513 of
    them; number, sum and sum of squares go on over all.
    """

    def __init__(self) -> None:
        self._rows: dict[int, Tensor] = {}  # mini-batch to its row
        self._step = 1  # s
        self._sums: Tensor | None = None  # (2, ...), float64: of the rows and of their squares, once some have gone

    def append(self, batch: int, row: Tensor) -> None:
        """Take the row of a mini-batch, whose number is larger than those before it."""
        self._thin(batch + 1)
        if self._step > 1:
            self._sums = _with_square(row) + (0 if self._sums is None else self._sums)
        if batch % self._step == 0:
            self._rows[batch] = row

    def together(self, count: int) -> tuple[Tensor, Tensor | None]:
        """The rows of all ranks in the order of the mini-batches, the same bits as in one process.

        Args:
            count: of the mini-batches, B, of which this rank has appended its own.

        Returns:
            The rows (B or fewer, ...), and if they are fewer the moments of all (3, ...), see `LayerScores`.
        """
        self._thin(count)
        kept = range(0, count, self._step)
        rows = None
        if self._rows:
            first = next(iter(self._rows.values()))
            rows = first.new_zeros(len(kept), *first.shape)  # 0 where a row is another rank's
            for batch, row in self._rows.items():
                rows[batch // self._step] = row
        rows = cast(Tensor, _ranks.add(rows))  # rank 0 has the first mini-batch
        if self._step == 1:
            return rows, None
        sums = cast(Tensor, _ranks.add(self._sums))
        return rows, torch.cat([torch.full_like(sums[:1], count), sums])

    def _thin(self, count: int) -> None:
        """Drop rows until those of ``count`` mini-batches would fit."""
        step = self._step
        while len(range(0, count, step)) > MOST_ROWS:
            step *= 2
        if step == self._step:
            return
        if self._sums is None and self._rows:
            self._sums = reduce(torch.add, map(_with_square, self._rows.values()))
        self._step = step
        self._rows = {batch: row for batch, row in self._rows.items() if batch % step == 0}


def _with_square(row: Tensor) -> Tensor:
    return torch.stack([row.double(), row.double().square()])


class OverBatches:
    """What follows from ``per_batch`` (B, F), and ``moments`` (3, F) where that has not all mini-batches."""

    per_batch: Tensor
    moments: Tensor | None

    @property
    def count(self) -> int:
        """The number of mini-batches, B."""
        return len(self.per_batch) if self.moments is None else int(self.moments[0, 0])

    @property
    def mean(self) -> Tensor:
        """The score of each filter, (F,): every mini-batch has the same weight."""
        if self.moments is None:
            return self.per_batch.mean(dim=0)
        return (self.moments[1] / self.count).to(self.per_batch.dtype)

    @property
    def variance(self) -> Tensor:
        """Over the mini-batches (unbiased), (F,), in the square of the unit; zeros for a single one."""
        if self.moments is None:
            return self.per_batch.var(dim=0) if self.count > 1 else torch.zeros_like(self.per_batch[0])
        _, total, squares = self.moments
        return ((squares - total.square() / self.count) / (self.count - 1)).clamp(min=0).to(self.per_batch.dtype)

    @property
    def std(self) -> Tensor:
        """The spread of each filter over the mini-batches (unbiased), (F,); zeros for a single mini-batch."""
        if self.moments is not None:
            return self.variance.sqrt()
        return self.per_batch.std(dim=0) if self.count > 1 else torch.zeros_like(self.per_batch[0])


@dataclass(frozen=True, eq=False)
class LayerScores(OverBatches):
    """The relevance of each filter of one layer in each mini-batch, in bits, and what follows from it.

    A filter's score is the plain mean over the B mini-batches, m_f = sum_b I_bf / B. So that memory stays bounded, up
    to 1024 mini-batches are all in ``per_batch``; of more it holds every second, fourth, ... one, and ``moments`` has
    what ``count``, ``mean``, ``variance``, ``std`` and ``standard_error`` need of all of them. ``rank_stability`` and
    ``agreement`` look at the rows that are there, 513 or more.

    Args:
        per_batch: (B, F), float32 on the CPU: I(A_f; Y) in bits; fewer rows where there are ``moments``.
        widths: (B,) where a mini-batch had one kernel width for the layer, else (B, F); in the units of the maps.
        null: (R, F), bits: draw r is the mean over the mini-batches of the relevance for labels that were permuted
            within each of them; None where there were no permutations.
        moments: (3, F), float64: the number of mini-batches, the sum of a filter's scores and that of their squares;
            None where ``per_batch`` has all of them.

    Raises:
        ValueError: shapes that do not fit each other.

    Source: of the score, Sarvani et al., HRel, Neural Networks 147 (2022), doi 10.1016/j.neunet.2021.12.017.

    Example:
        >>> import torch, hrel_ext
        >>> layer = hrel_ext.LayerScores(torch.tensor([[1.0, 2.0], [1.0, 4.0]]), widths=torch.tensor([5.0, 6.0]))
        >>> layer.count, layer.mean.tolist(), layer.variance.tolist(), layer.standard_error.tolist()
        (2, [1.0, 3.0], [0.0, 2.0], [0.0, 1.0])
    """

    per_batch: Tensor
    widths: Tensor
    null: Tensor | None = None
    moments: Tensor | None = None

    def __post_init__(self) -> None:
        if self.per_batch.dim() != 2 or 0 in self.per_batch.shape:
            raise ValueError(f"per_batch must have shape (B, F) with B, F >= 1, got {tuple(self.per_batch.shape)}")
        count, num_filters = self.per_batch.shape
        if self.widths.shape not in ((count,), (count, num_filters)):
            raise ValueError(
                f"widths must have shape (B,) = ({count},) or (B, F) = ({count}, {num_filters}), "
                f"got {tuple(self.widths.shape)}"
            )
        if self.null is not None and (self.null.dim() != 2 or self.null.shape[1] != num_filters or not len(self.null)):
            raise ValueError(
                f"null must have shape (R, F) with R >= 1 and F = {num_filters}, got {tuple(self.null.shape)}"
            )

        if self.moments is not None and (self.moments.shape != (3, num_filters) or not self.moments[0, 0] > count):
            raise ValueError(
                f"moments must have shape (3, F) = (3, {num_filters}) and count more than the {count} mini-batches of "
                f"per_batch, got {tuple(self.moments.shape)}"
            )

    @property
    def standard_error(self) -> Tensor:
        """Of the mean, std / sqrt(B), (F,), bits; NaN for a single mini-batch, which does not tell."""
        return self.std / math.sqrt(self.count) if self.count > 1 else torch.full_like(self.per_batch[0], torch.nan)

    @property
    def debiased(self) -> Tensor:
        """The score less the mean of its null, (F,), bits. Raises ValueError without a null."""
        return self._permutation_null().debiased

    @property
    def z(self) -> Tensor:
        """``debiased`` in standard deviations of the null, (F,). Raises ValueError without a null."""
        return self._permutation_null().z

    @property
    def p_value(self) -> Tensor:
        """(1 + the draws of the null that reach the score) / (R + 1), (F,). Raises ValueError without a null."""
        return self._permutation_null().p_value

    @property
    def rank_stability(self) -> float | None:
        """Kendall's tau-b between the means over every other mini-batch and over the rest, see `kendall_tau`.

        Mini-batches 0, 2, 4, ... against 1, 3, 5, ..., so that a drift along the loader does not count as instability;
        NaN where one half gives all filters the same mean, None for a single mini-batch.
        """
        if self.count == 1:
            return None
        return kendall_tau(self.per_batch[::2].mean(dim=0), self.per_batch[1::2].mean(dim=0))

    @property
    def agreement(self) -> Agreement | None:
        """Friedman's test of the hypothesis that the filters do not differ; None for one mini-batch or one filter.

        All filters see the same mini-batches, so they are ranked within each one: r_bf (equal scores share their mean
        rank), d_bf = r_bf - (F + 1) / 2, v_b = sum_f d_bf^2, V = sum_b v_b. If the filters do not differ, then

            Q = (F - 1) sum_f (sum_b d_bf)^2 / V     has mean F - 1 and variance 2 (F - 1) (1 - sum_b v_b^2 / V^2),

        exactly; the p-value is that of the gamma distribution with this mean and variance, which for many mini-batches
        is the usual chi^2 with F - 1 degrees of freedom. The concordance is Kendall's W = Q / (B (F - 1)).

        Source: M. Friedman, J. Am. Stat. Assoc. 32 (1937); M. G. Kendall, B. Babington Smith, Ann. Math. Stat. 10
        (1939).
        """
        count, num_filters = self.per_batch.shape
        if count == 1 or num_filters == 1:
            return None
        in_order = self.per_batch.sort(dim=1).values  # (B, F)
        below = torch.searchsorted(in_order, self.per_batch)  # (B, F), how many are smaller
        not_above = torch.searchsorted(in_order, self.per_batch, right=True)  # (B, F), how many are not larger
        deviation = (below + not_above - num_filters).double() / 2  # (B, F), d; the ranks are 1 more than their mean
        squares = deviation.square().sum(dim=1)  # (B,), v
        total = squares.sum()
        # Nothing can agree unless two mini-batches tell some filters apart.
        if (squares > 0).sum() < 2:
            return Agreement(0.0, 1.0)
        freedom = num_filters - 1
        statistic = freedom * deviation.sum(dim=0).square().sum() / total
        variance = 2 * freedom * (1 - (squares / total).square().sum())
        p_value = torch.special.gammaincc(freedom**2 / variance, statistic * freedom / variance)
        return Agreement((statistic / (count * freedom)).item(), p_value.item())

    @property
    def distinguishable(self) -> bool | None:
        """Whether the filters can be told apart: the p-value of `agreement` is below 0.05; None where it is None."""
        return None if self.agreement is None else self.agreement.p_value < SIGNIFICANCE

    def _permutation_null(self) -> PermutationNull:
        if self.null is None:
            raise ValueError("null must be there: collect the scores with permutations >= 1, got None")
        return PermutationNull(relevance=self.mean, null=self.null)


@dataclass(frozen=True)
class Header:
    """What a table of scores was made from and with.

    Attributes:
        modules: layer to the name of its module in the model.
        where: "conv", "bn", "relu" or "pool": the tensor that was scored.
        sigma: rule of the widths: "layer", "filter" or "given". The widths themselves are in the table.
        alpha: order of the entropy.
        label_sigma: kernel width of the labels.
        permutations: draws of the null, R.
        seed: of the permutations.
        batch_size: samples in a mini-batch, N.
        versions: of ``hrel_ext`` and ``torch``.
        weights: `weight_hash` of the model.

    Example:
        >>> import torch, hrel_ext
        >>> _ = torch.manual_seed(0)
        >>> batch = torch.randn(12, 1, 6, 6), torch.arange(12) % 3
        >>> scores = hrel_ext.collect(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3)), [batch])
        >>> scores.header.modules, scores.header.where, scores.header.sigma, scores.header.batch_size
        ({'0': '0'}, 'conv', 'layer', 12)
    """

    modules: dict[str, str]
    where: str
    sigma: str
    alpha: float
    label_sigma: float
    permutations: int
    seed: int
    batch_size: int
    versions: dict[str, str]
    weights: str


# The tensors of a layer in files, the last two where there are such.
PARTS = {"per_batch": torch.float32, "widths": torch.float32, "null": torch.float32, "moments": torch.float64}
_FILE = TableFormat("a table of scores", "hrel_ext.scores", schema_version=1, header=Header)


class Scores(Mapping[str, LayerScores]):
    """The scores of a model's layers, name to `LayerScores` in the order of scoring; made by `hrel_ext.collect`.

    On disk a table is one safetensors file, which holds tensors and text and can run no code: for each layer
    ``per_batch/NAME``, ``widths/NAME`` and, where there are such, ``null/NAME`` and ``moments/NAME``, and the header as
    JSON in the metadata.

    Args:
        layers: name to its `LayerScores`; the same number of mini-batches and of permutations in all of them.
        header: what they were made from.

    Raises:
        ValueError: layers that do not fit each other or the header.

    Example:
        >>> import os, tempfile, torch, hrel_ext
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3))
        >>> batches = [(torch.randn(12, 1, 6, 6), torch.arange(12) % 3) for _ in range(5)]
        >>> scores = hrel_ext.collect(model, batches, sigma=4.0, permutations=9)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "scores.safetensors")
        ...     scores.save(path)
        ...     loaded = hrel_ext.Scores.load(path)
        >>> list(loaded), loaded["0"].per_batch.shape, loaded.matches(model)
        (['0'], torch.Size([5, 4]), True)
    """

    def __init__(self, layers: Mapping[str, LayerScores], header: Header) -> None:
        self._layers = dict(layers)
        self.header = header
        if list(self._layers) != list(header.modules) or not self._layers:
            raise ValueError(
                f"layers must be those of the header ({', '.join(header.modules)}), got {', '.join(self._layers)}"
            )
        counts = {layer.count for layer in self._layers.values()}
        if len(counts) > 1:
            raise ValueError(f"layers must have the same number of mini-batches, got {sorted(counts)}")
        draws = {0 if layer.null is None else len(layer.null) for layer in self._layers.values()}
        if draws != {header.permutations}:
            raise ValueError(f"layers must have a null of {header.permutations} permutations, got {sorted(draws)}")

    def __getitem__(self, name: str) -> LayerScores:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name!r}: {layer.per_batch.shape[1]} filters" for name, layer in self.items())
        return f"Scores({next(iter(self.values())).count} mini-batches of {self.header.batch_size}; {sizes})"

    def matches(self, model: nn.Module) -> bool:
        """Whether the model has the weights that were scored; otherwise the scores are stale.

        Args:
            model: on any device.
        """
        return self.header.weights == weight_hash(model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to one file, which appears whole or not at all.

        Args:
            path: of the file, say ``scores.safetensors``; a file that is there is replaced.

        Raises:
            ImportError: safetensors is not installed.
        """
        tensors = {
            f"{part}/{name}": tensor
            for name, layer in self.items()
            for part in PARTS
            if (tensor := getattr(layer, part)) is not None
        }
        _FILE.save(path, self.header, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Scores":
        """Read a table that `save` wrote.

        Args:
            path: of the file.

        Returns:
            The same table, bit for bit.

        Raises:
            ImportError: safetensors is not installed.
            FileNotFoundError: there is no such file.
            ValueError: the file is cut off, something else, of another schema, or does not fit its own header.
        """
        return _FILE.load(path, cls._from_parts)

    @classmethod
    def _from_parts(cls, header: Header, tensors: dict[str, Tensor]) -> "Scores":
        has = {"null": header.permutations > 0, "moments": any(key.startswith("moments/") for key in tensors)}
        dtypes = {part: dtype for part, dtype in PARTS.items() if has.get(part, True)}
        check_tensors(tensors, {f"{part}/{name}": dtypes[part] for name in header.modules for part in dtypes})
        layers = {n: LayerScores(**{part: tensors[f"{part}/{n}"] for part in dtypes}) for n in header.modules}
        return cls(layers, header)


def kendall_tau(first: Tensor, second: Tensor) -> float:
    """Kendall's tau-b: how far two scores agree on the order of F filters, with a correction for equal scores.

        tau = sum_ij sgn(a_i - a_j) sgn(b_i - b_j) / sqrt(sum_ij sgn(a_i - a_j)^2  sum_ij sgn(b_i - b_j)^2)

    Args:
        first: (F,), a.
        second: (F,), b.

    Returns:
        From -1 (reversed) to 1 (the same order), without unit; NaN where all of one are equal, or F < 2.

    Raises:
        ValueError: other shapes.

    Source: M. G. Kendall, Biometrika 33 (1945).

    Example:
        >>> import torch, hrel_ext
        >>> round(hrel_ext.kendall_tau(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])), 4)
        0.3333
    """
    if first.dim() != 1 or first.shape != second.shape:
        raise ValueError(
            f"first and second must have one shape (F,), got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    a, b = ((x[:, None] - x[None, :]).sign() for x in (first.detach(), second.detach()))  # (F, F) each
    # Counts, in float64 because float32 is exact only up to 4096 filters.
    both, of_a, of_b = ((x * y).sum(dtype=torch.float64).item() for x, y in ((a, b), (a, a), (b, b)))
    return both / math.sqrt(of_a * of_b) if of_a and of_b else math.nan


def weight_hash(model: nn.Module) -> str:
    """Sha256 of the parameters and buffers of a model, the same on every device.

    Over the tensors of its ``state_dict`` in the order of their names: the UTF-8 text of name, dtype and shape, such as
    ``conv1.weight torch.float32 [20, 1, 5, 5]`` and a line feed, then the bytes of the values in C order.

    Args:
        model: any; what is in its state dict and no tensor does not count.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import torch, hrel_ext
        >>> layer = torch.nn.Linear(2, 1)
        >>> before = hrel_ext.weight_hash(layer)
        >>> torch.nn.init.zeros_(layer.bias).shape
        torch.Size([1])
        >>> len(before), before == hrel_ext.weight_hash(layer)
        (64, False)
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What a table of scores depends on beside its model and data."""
    return {"hrel_ext": version("hrel_ext"), "torch": torch.__version__}
