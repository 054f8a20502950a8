"""Mini-batches with the same number of samples of each of a few classes, for data with many classes."""
# SPDX-License-Identifier: MIT

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler


class BalancedBatchSampler(Sampler[list[int]]):
    """Mini-batches of C classes with n samples of each, N = C n, drawn without replacement as far as possible.

    With many classes a plain mini-batch has hardly two samples of one class. Then A o B, of the maps and the labels, is
    nearly the identity / N, S(A, B) nearly S(B), and

        I(A; B) = S(A) + S(B) - S(A, B)  is nearly  S(A),

    the entropy of the maps, whatever the labels are. A balanced mini-batch keeps whole blocks of each class.

    A class is drawn again only when every class was drawn, and a sample only when every sample of its class was; so a
    mini-batch never holds a class or a sample twice. Each pass over the sampler gives the same mini-batches until
    `set_epoch` says otherwise.

    Args:
        labels: (K,), the class id of each sample of the data set, a tensor or a sequence of integers.
        classes_per_batch: C, at most the number of classes in ``labels``.
        samples_per_class: n, at most the number of samples of the smallest class.
        num_batches: mini-batches in a pass; None is as many as the data set fills, K // N, and at least 1.
        seed: of the order, together with the epoch: passes depend on seed + epoch, as in torch's DistributedSampler.

    Raises:
        TypeError, ValueError: naming the argument, its rule and the value.

    Example:
        >>> import torch, hrel_ext
        >>> labels = torch.arange(1000) % 100
        >>> sampler = hrel_ext.BalancedBatchSampler(labels, classes_per_batch=4, samples_per_class=5)
        >>> len(sampler), sorted(torch.unique(labels[next(iter(sampler))], return_counts=True)[1].tolist())
        (50, [5, 5, 5, 5])
        >>> data = torch.utils.data.TensorDataset(torch.randn(1000, 3), labels)
        >>> loader = torch.utils.data.DataLoader(data, batch_sampler=sampler)
        >>> [tuple(part.shape) for part in next(iter(loader))]
        [(20, 3), (20,)]
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        classes_per_batch: int,
        samples_per_class: int,
        num_batches: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (
            ("classes_per_batch", classes_per_batch),
            ("samples_per_class", samples_per_class),
            ("num_batches", 1 if num_batches is None else num_batches),
        ):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        labels = torch.as_tensor(labels).cpu()  # (K,)
        if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(
                f"labels must be integers of shape (K,), got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        classes, sizes = labels.unique(return_counts=True)  # (number of classes,) each, ascending
        if classes_per_batch > len(classes):
            raise ValueError(
                f"classes_per_batch must be at most the {len(classes)} classes of labels, got {classes_per_batch}"
            )
        if samples_per_class > sizes.min():
            smallest = sizes.argmin()
            raise ValueError(
                f"samples_per_class must be at most {sizes[smallest]}, the samples of class {classes[smallest]}, "
                f"got {samples_per_class}"
            )
        self._members = labels.argsort(stable=True).split(sizes.tolist())  # of each class, its indices
        self._classes_per_batch = classes_per_batch
        self._samples_per_class = samples_per_class
        self._num_batches = num_batches or max(1, len(labels) // (classes_per_batch * samples_per_class))
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Give the following passes another order, that of ``seed + epoch``."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        classes = _Deck(torch.arange(len(self._members)), generator)
        decks = [_Deck(members, generator) for members in self._members]
        for _ in range(self._num_batches):
            drawn = classes.draw(self._classes_per_batch).tolist()
            yield [index for c in drawn for index in decks[c].draw(self._samples_per_class).tolist()]


class _Deck:
    """Cards that are drawn in random order; none a second time before all were drawn, none twice in one draw."""

    def __init__(self, cards: Tensor, generator: Generator) -> None:
        self._cards = cards  # (n,)
        self._generator = generator
        self._left = cards[:0]  # in the order in which they will be drawn

    def draw(self, count: int) -> Tensor:
        """The next ``count`` cards, at most n."""
        missing = count - len(self._left)
        if missing > 0:
            fresh = self._cards[torch.randperm(len(self._cards), generator=self._generator)]  # (n,)
            taken = fresh[~torch.isin(fresh, self._left)][:missing]  # (missing,), none that this draw has already
            self._left = torch.cat([self._left, taken, fresh[~torch.isin(fresh, taken)]])
        drawn, self._left = self._left[:count], self._left[count:]
        return drawn
