"""Training by SGD on Accelerate, with the epoch chosen on a validation split, and evaluation."""
# SPDX-License-Identifier: MIT

import math
from collections.abc import Callable, Iterable, Sized
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from hrel_ext.collect import Batch, evaluation_mode


class SizedBatches(Sized, Iterable[Batch], Protocol):
    """Mini-batches whose number is known; each pass over them is one epoch."""


@dataclass(frozen=True)
class Evaluation:
    """How a network does on a split: accuracy in [0, 1], mean cross-entropy in nats."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Epoch:
    """One epoch of training.

    Attributes:
        number: 1 for the first.
        loss: mean cross-entropy over the mini-batches while training, in nats.
        validation: on the validation split afterwards.
    """

    number: int
    loss: float
    validation: Evaluation


@dataclass(frozen=True)
class Training:
    """A finished training: its epochs, and the one whose weights the network has."""

    epochs: tuple[Epoch, ...]
    best: Epoch


def train(
    model: nn.Module,
    train_batches: SizedBatches,
    validation_batches: Iterable[Batch],
    *,
    epochs: int,
    learning_rate: float,
    milestones: tuple[int, ...] | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Training:
    """Train a classifier in place and leave it with the weights of its best epoch on the validation split.

    The best epoch is the one with the highest validation accuracy, of equal ones that with the lowest validation loss,
    so that a test split is never needed to choose. The optimizer is new: after pruning, an old one holds momentum for
    weights that are gone. Equal seeds, thread counts and machines give equal weights on the CPU.

    Args:
        model: from inputs (N, ...) to logits (N, C); moved to ``device``.
        train_batches: pairs of inputs and labels (N,), int64, with a length; one pass is one epoch.
        validation_batches: pairs like these.
        epochs: passes over ``train_batches``, at least 1.
        learning_rate: the peak of one cycle, or the first value of a step schedule.
        milestones: epochs after which the learning rate is divided by 10; None for one cycle over all steps.
        momentum: of SGD; constant.
        weight_decay: of SGD, on all parameters.
        seed: seeds Python, NumPy and torch.
        device: "cpu" or "cuda".
        on_epoch: called with each `Epoch` when it is done.

    Returns:
        All epochs and the best one.

    Raises:
        ValueError: ``epochs`` below 1, a learning rate that is not positive, or a device that is not there.
        RuntimeError: the loss is no longer finite.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be above 0, got {learning_rate}")
    check_device(device)
    set_seed(seed)
    accelerator = Accelerator(cpu=device == "cpu")
    plain = model  # Accelerate may wrap it
    model.to(accelerator.device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        fused=True,  # a third faster on the CPU, where LeNet-5's million weights are read once instead of four times
    )
    scheduler = _scheduler(optimizer, epochs, len(train_batches), learning_rate, milestones)
    model, optimizer = accelerator.prepare(model, optimizer)
    history: list[Epoch] = []
    for number in range(1, epochs + 1):
        model.train()
        total = torch.zeros((), device=accelerator.device)  # summed on the device: no wait in every step
        for inputs, labels in train_batches:
            loss = cross_entropy(model(inputs.to(accelerator.device)), labels.to(accelerator.device))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            total += loss.detach()
        mean = total.item() / len(train_batches)
        if not math.isfinite(mean):
            raise RuntimeError(
                f"training diverged: the loss is {mean} in epoch {number} at learning rate {learning_rate}"
            )
        history.append(Epoch(number, mean, evaluate(plain, validation_batches)))
        best = max(history, key=lambda epoch: (epoch.validation.accuracy, -epoch.validation.loss))
        if best is history[-1]:
            weights = deepcopy(plain.state_dict())
        if on_epoch:
            on_epoch(history[-1])
    plain.load_state_dict(weights)
    return Training(tuple(history), best)


def evaluate(model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
    """Accuracy and loss of a classifier over a split, in eval mode and without gradients.

    Args:
        model: from inputs (N, ...) to logits (N, C).
        batches: pairs of inputs and labels (N,); moved to the device of the model.

    Returns:
        The share of samples whose largest logit is their label, and the mean cross-entropy.

    Raises:
        ValueError: no batches.
    """
    device = next(model.parameters()).device
    count, correct, loss = 0, 0, 0.0
    with evaluation_mode(model), torch.no_grad():
        for inputs, labels in batches:
            logits, labels = model(inputs.to(device)), labels.to(device)  # (N, C), (N,)
            count += len(labels)
            correct += (logits.argmax(dim=1) == labels).sum().item()
            loss += cross_entropy(logits, labels, reduction="sum").item()
    if not count:
        raise ValueError("batches must hold at least one sample, got none")
    return Evaluation(correct / count, loss / count)


def check_device(device: str) -> None:
    """Raise ValueError unless training can run on ``device``: "cpu", or "cuda" where torch sees a GPU."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda needs a GPU that torch can use, got torch.cuda.is_available() = False")


def _scheduler(
    optimizer: torch.optim.Optimizer, epochs: int, steps: int, learning_rate: float, milestones: tuple[int, ...] | None
) -> LRScheduler:
    """The learning rate of every step, one cycle or a division by 10 after each milestone."""
    if milestones is None:
        return OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps, cycle_momentum=False)
    return MultiStepLR(optimizer, [steps * milestone for milestone in milestones])
