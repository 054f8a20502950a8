"""Relevance in a training by Hugging Face's Trainer."""
# SPDX-License-Identifier: MIT

from collections.abc import Iterable
from typing import Any

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    text = "hrel_ext.integrations.transformers needs transformers: pip install 'hrel_ext[transformers]'"
    raise ImportError(text) from error

from hrel_ext.collect import Batch, collect
from hrel_ext.scores import Scores


class RelevanceCallback(TrainerCallback):
    """Scores the filters at the end of every so many epochs, by `hrel_ext.collect`, which several ranks share.

    Args:
        batches: what is scored on, as for `hrel_ext.collect`: pairs of images and labels; best the same each time, no
            test data, and on every rank the same.
        every: epochs from one scoring to the next, >= 1.
        options: as for `hrel_ext.collect`, such as ``layers=[...]``.

    Attributes:
        scores: epochs that were over, to the `Scores` in bits, on every rank.

    Raises:
        ValueError: ``every`` below 1; when training, as `hrel_ext.collect`.

    Example:
        >>> callback = RelevanceCallback(batches, every=5)  # doctest: +SKIP
        >>> Trainer(model, arguments, train_dataset=images, callbacks=[callback]).train()  # doctest: +SKIP
    """

    def __init__(self, batches: Iterable[Batch], *, every: int = 1, **options: Any) -> None:
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}")
        self.batches, self.every, self.options = batches, every, options
        self.scores: dict[int, Scores] = {}

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        epochs = round(state.epoch)
        if epochs % self.every == 0:
            self.scores[epochs] = collect(others["model"], self.batches, **self.options)
