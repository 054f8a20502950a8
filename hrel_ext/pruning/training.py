"""Training by SGD on Accelerate, with the epoch chosen on a validation split, and evaluation."""
# SPDX-License-Identifier: MIT

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DataLoaderConfiguration, broadcast, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from hrel_ext import _ranks
from hrel_ext.collect import Batch, evaluation_mode
from hrel_ext.pruning.cost import check_device
from hrel_ext.pruning.resume import Checkpoints

PRECISIONS = ("no", "bf16", "fp16")
TEMPERATURE = 4.0  # of the distillation, Hinton et al.'s order of magnitude
_HISTORY, _BEST, _BATCHES = "epochs.json", "best.safetensors", "batches.bin"


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


@contextmanager
def _own_state() -> Iterator[None]:
    """Accelerate keeps device and precision for the whole process, as first asked for. A training has its own, and the
    state that it finds, say of the user's Accelerator, is there again afterwards."""
    states = [PartialState._shared_state, AcceleratorState._shared_state]
    found = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, content in zip(states, found, strict=True):
            state.clear()
            state.update(content)


@_own_state()
def train(
    model: nn.Module,
    train_batches: SizedBatches,
    validation_batches: Iterable[Batch],
    *,
    epochs: int,
    learning_rate: float,
    milestones: tuple[int, ...] | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    teacher: nn.Module | None = None,
    distillation: float = 0.0,
    precision: str = "no",
    accumulate: int = 1,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
    on_step: Callable[[Tensor, Tensor], object] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Training:
    """Train a classifier in place and leave it with the weights of its best epoch on the validation split.

    The best epoch is the one with the highest validation accuracy, of equal ones that with the lowest validation loss,
    so that a test split is never needed to choose. The optimizer is new: after pruning, an old one holds momentum for
    weights that are gone. Equal seeds, thread counts and machines give equal weights on the CPU.

    Under torchrun every process trains on its own of the mini-batches, which each must give in the same order, and
    gradients are averaged (DDP): a step is one mini-batch per process. All processes end with the same weights; the
    first one writes the checkpoints, from which another number of processes can go on, at the same epoch and point of
    the learning rate schedule.

    With a teacher the loss is (1 - w) CE(y, p) + w T^2 KL(p_teacher^(1/T) || p^(1/T)), both softened by T = 4.

    Args:
        model: from inputs (N, ...) to logits (N, C); moved to ``device``.
        train_batches: pairs of inputs and labels (N,), int64, with a length; one pass is one epoch. If they have
            ``state_dict`` and ``load_state_dict``, a checkpoint holds their state.
        validation_batches: pairs like these.
        epochs: passes over ``train_batches``, at least 1.
        learning_rate: the peak of one cycle, or the first value of a step schedule.
        milestones: epochs after which the learning rate is divided by 10; None for one cycle over all steps.
        momentum: of SGD; constant.
        nesterov: whether the momentum is Nesterov's.
        weight_decay: of SGD, on all parameters.
        label_smoothing: share of every label that is spread evenly over the classes, in [0, 1); 0 with a teacher, whose
            softened logits take that part.
        teacher: a network whose logits the model learns as well, say the unpruned one; not changed.
        distillation: w, the weight of the teacher, in (0, 1]; 0 without a teacher.
        precision: "no" (float32), "bf16" or "fp16" for mixed precision; validation is always float32.
        accumulate: parts that each mini-batch is cut into, whose gradients are added up before a step: less memory,
            batch norms that see one part at a time.
        seed: seeds Python, NumPy and torch.
        device: "cpu" or "cuda".
        checkpoint: a folder that takes the state after every epoch. A training that was interrupted goes on from there
            when it is called again with the same arguments, to the same weights; one that was finished returns at once.
        on_step: called with the inputs and labels of a mini-batch after each step, say
            `hrel_ext.report.InformationPlane.record`.
        on_epoch: called with each `Epoch` when it is done, and at once with those of a checkpoint.

    Returns:
        All epochs and the best one.

    Raises:
        ValueError: an argument that breaks its rule, a device that is not there, a checkpoint of another training.
        RuntimeError: the loss is no longer finite.
        OSError: a checkpoint cannot be written; the one before it is still there.

    Source: of the distillation, G. Hinton, O. Vinyals, J. Dean, arXiv 1503.02531.
    """
    settings: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "milestones": None if milestones is None else list(milestones),
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "distillation": distillation,
        "precision": precision,
        "accumulate": accumulate,
        "seed": seed,
    }
    check_training(**settings)
    if (distillation > 0) != (teacher is not None):
        rule = "0 without a teacher" if teacher is None else "above 0 with a teacher"
        raise ValueError(f"distillation must be {rule}, got {distillation}")
    if teacher is not None and label_smoothing:
        raise ValueError(f"label_smoothing must be 0 with a teacher, got {label_smoothing}")
    check_device(device)
    settings["parameters"] = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    store = None if checkpoint is None else Checkpoints(checkpoint, settings)
    set_seed(seed)
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True),  # one step of the schedule for one of all ranks
    )
    ranks = accelerator.num_processes
    _ranks.check_equal("train_batches", f"{len(train_batches)} mini-batches")
    if len(train_batches) < ranks:
        raise ValueError(f"train_batches must hold one for each of {ranks} processes, got {len(train_batches)}")
    steps = len(train_batches) // ranks
    model.to(accelerator.device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=learning_rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        fused=True,  # a third faster on the CPU, where LeNet-5's million weights are read once instead of four times
    )
    scheduler = _scheduler(optimizer, epochs, steps, learning_rate, milestones)
    # Mixed precision replaces the forward of what is prepared: that of the shell, not that of the user's network.
    shell, optimizer, scheduler = accelerator.prepare(nn.Sequential(model), optimizer, scheduler)
    loss_of = _Loss(label_smoothing, None if teacher is None else teacher.to(accelerator.device), distillation)
    history: list[Epoch] = []
    weights = model.state_dict()
    if store and (folder := store.latest()):
        position = scheduler.state_dict()
        accelerator.load_state(str(folder))
        torch.set_rng_state(_ranks.from_first(torch.get_rng_state))  # the ranks draw alike, and rank 0 alone saved it
        history = [_epoch(row) for row in json.loads((folder / _HISTORY).read_text())]
        weights = load_file(folder / _BEST)
        if (folder / _BATCHES).exists():
            cast(Any, train_batches).load_state_dict(torch.load(folder / _BATCHES, weights_only=True))
        loaded = scheduler.state_dict()
        if any(position.get(key) != loaded.get(key) for key in ("total_steps", "milestones")):
            done = len(history) * steps  # another number of ranks saved it, which takes other steps
            scheduler.load_state_dict(position | {"last_epoch": done, "_step_count": done + 1})
        if on_epoch:
            for epoch in history:
                on_epoch(epoch)
    for number in range(len(history) + 1, epochs + 1):
        model.train()
        total = torch.zeros((), device=accelerator.device)  # summed on the device: no wait in every step
        for index, (inputs, labels) in enumerate(_ranks.shared(train_batches)):
            if not _ranks.is_own(index) or index >= steps * ranks:
                continue  # another rank's, or left over; every rank goes through all, so that their orders stay equal
            optimizer.zero_grad()
            inputs, labels = inputs.to(accelerator.device), labels.to(accelerator.device)
            parts = list(zip(inputs.chunk(accumulate), labels.chunk(accumulate), strict=True))
            for at, (part, wanted) in enumerate(parts, start=1):
                with nullcontext() if at == len(parts) else accelerator.no_sync(shell):
                    loss = loss_of(shell(part), wanted, part) * (len(part) / len(inputs))
                    accelerator.backward(loss)
                total += loss.detach()
            optimizer.step()
            scheduler.step()
            if on_step:
                on_step(inputs, labels)
        mean = accelerator.reduce(total, "mean").item() / steps
        if ranks > 1:  # each has batch norms of its own mini-batches
            for buffer in model.buffers():
                broadcast(buffer)
        if not math.isfinite(mean):
            raise RuntimeError(
                f"training diverged: the loss is {mean} in epoch {number} at learning rate {learning_rate}"
            )
        history.append(Epoch(number, mean, evaluate(model, validation_batches)))
        if _best(history) is history[-1]:
            weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        if store:
            store.save(partial(_write, accelerator, history, weights, train_batches))
        if on_epoch:
            on_epoch(history[-1])
    model.load_state_dict(weights)
    return Training(tuple(history), _best(history))


def evaluate(model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
    """Accuracy and loss of a classifier over a split, in eval mode and without gradients.

    Ranks of torch.distributed share the mini-batches; all must call this, and return the same.

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
        for inputs, labels in _ranks.own(batches):
            logits, labels = model(inputs.to(device)), labels.to(device)  # (N, C), (N,)
            count += len(labels)
            correct += (logits.argmax(dim=1) == labels).sum().item()
            loss += cross_entropy(logits, labels, reduction="sum").item()
    count, correct, loss = (sum(values) for values in zip(*_ranks.gather((count, correct, loss)), strict=True))
    if not count:
        raise ValueError("batches must hold at least one sample, got none")
    return Evaluation(correct / count, loss / count)


def check_training(
    *,
    epochs: int,
    learning_rate: float,
    label_smoothing: float,
    distillation: float,
    precision: str,
    accumulate: int,
    **others: object,
) -> None:
    """Raise ValueError unless `train` can run with these arguments, which it names."""
    for name, value in (("epochs", epochs), ("accumulate", accumulate)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be above 0, got {learning_rate}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
    if not 0 <= distillation <= 1:
        raise ValueError(f"distillation must be between 0 and 1, got {distillation}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def _scheduler(
    optimizer: torch.optim.Optimizer, epochs: int, steps: int, learning_rate: float, milestones: tuple[int, ...] | None
) -> LRScheduler:
    """The learning rate of every step, one cycle or a division by 10 after each milestone."""
    if milestones is None:
        return OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps, cycle_momentum=False)
    return MultiStepLR(optimizer, [steps * milestone for milestone in milestones])


class _Loss:
    """Cross-entropy, with a teacher the sum of both."""

    def __init__(self, label_smoothing: float, teacher: nn.Module | None, weight: float) -> None:
        self._label_smoothing, self._teacher, self._weight = label_smoothing, teacher, weight

    def __call__(self, logits: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
        loss = cross_entropy(logits, labels, label_smoothing=self._label_smoothing)
        if self._teacher is None:
            return loss
        with evaluation_mode(self._teacher), torch.no_grad():
            wanted = log_softmax(self._teacher(inputs) / TEMPERATURE, dim=1)
        got = log_softmax(logits / TEMPERATURE, dim=1)
        soft = kl_div(got, wanted, reduction="batchmean", log_target=True) * TEMPERATURE**2
        return (1 - self._weight) * loss + self._weight * soft


def _best(history: Sequence[Epoch]) -> Epoch:
    return max(history, key=lambda epoch: (epoch.validation.accuracy, -epoch.validation.loss))


def _epoch(row: Mapping[str, Any]) -> Epoch:
    return Epoch(row["number"], row["loss"], Evaluation(**row["validation"]))


def _write(
    accelerator: Accelerator,
    history: Sequence[Epoch],
    weights: Mapping[str, Tensor],
    batches: SizedBatches,
    folder: Path,
) -> None:
    """The state after an epoch: Accelerate's own, and what it does not know of."""
    accelerator.save_state(str(folder))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / _BEST)
    (folder / _HISTORY).write_text(json.dumps([asdict(epoch) for epoch in history]))
    if hasattr(batches, "state_dict"):
        torch.save(batches.state_dict(), folder / _BATCHES)
