"""Relevance in a Lightning training."""
# SPDX-License-Identifier: MIT

from collections.abc import Iterable
from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("hrel_ext.integrations.lightning needs lightning: pip install 'hrel_ext[lightning]'") from error

from hrel_ext.collect import Batch, collect
from hrel_ext.scores import Scores


class RelevanceCallback(Callback):
    """Scores the filters at the end of every so many epochs, by `hrel_ext.collect`, which several ranks share.

    Args:
        batches: what is scored on, as for `hrel_ext.collect`; best the same each time, and no test data; on every rank
            the same.
        every: epochs from one scoring to the next, >= 1.
        options: as for `hrel_ext.collect`, such as ``where="relu"``.

    Attributes:
        scores: epochs that were over, to the `Scores` in bits, on every rank.

    Raises:
        ValueError: ``every`` below 1; when training, as `hrel_ext.collect`.

    Example:
        >>> callback = RelevanceCallback(batches, every=5, where="relu")  # doctest: +SKIP
        >>> Trainer(max_epochs=20, callbacks=[callback]).fit(module, loader)  # doctest: +SKIP
        >>> callback.scores[20]["conv1"].mean  # doctest: +SKIP
    """

    def __init__(self, batches: Iterable[Batch], *, every: int = 1, **options: Any) -> None:
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}")
        self.batches, self.every, self.options = batches, every, options
        self.scores: dict[int, Scores] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if epochs % self.every == 0:
            self.scores[epochs] = collect(pl_module, self.batches, **self.options)
