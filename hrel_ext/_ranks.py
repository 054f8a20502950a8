"""Several processes that work as one, started by torchrun: what they share and agree on, by torch.distributed.

Process r of n, "rank r", works on the mini-batches r, r + n, r + 2 n, ... With one process nothing here does anything.
"""
# SPDX-License-Identifier: MIT

import os
import signal
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import count
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, distributed

_Made = TypeVar("_Made")
_Batch = TypeVar("_Batch")

TIMEOUT = "HREL_RANK_TIMEOUT_S"  # of the environment: seconds that a rank waits for another one
_groups = count()  # that this process has started, as many as the others
DEFAULT_TIMEOUT_S = 600.0  # longer than what rank 0 does alone, such as timing networks for a plan


def num_ranks() -> int:
    """How many processes there are; 1 outside of a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process."""
    return distributed.get_rank() if num_ranks() > 1 else 0


def is_own(batch: int) -> bool:
    """Whether mini-batch number ``batch`` of a pass is this rank's."""
    return batch % num_ranks() == rank()


def shared(batches: Iterable[_Batch]) -> Iterable[_Batch]:
    """The same mini-batches; those of other ranks unread if a loader has a ``for_rank``, as `zoo.data.Batches` has."""
    return batches.for_rank(rank(), num_ranks()) if num_ranks() > 1 and hasattr(batches, "for_rank") else batches


def own(batches: Iterable[_Batch]) -> Iterator[_Batch]:
    """This rank's mini-batches of a pass, at the end of which all ranks must have met the same number of them."""
    number = 0
    for number, batch in enumerate(shared(batches), start=1):
        if is_own(number - 1):
            yield batch
    check_equal("batches", f"{number} mini-batches")


class Checksum:
    """Of the labels of a pass: ranks with other mini-batches than the rest must not go unnoticed."""

    def __init__(self) -> None:
        self._count, self._value = 0, 0

    def add(self, labels: Tensor) -> None:
        """Count a mini-batch."""
        if num_ranks() > 1:
            self._count += 1
            self._value = zlib.crc32(labels.cpu().contiguous().numpy().tobytes(), self._value)

    def check(self) -> None:
        """Raise ValueError on every rank, and say which differ, unless all have seen the same labels."""
        check_equal("batches", f"{self._count} mini-batches with labels of checksum {self._value:08x}")


def gather(value: _Made) -> list[_Made]:
    """What each rank has, by rank."""
    values = [value] * num_ranks()
    if num_ranks() > 1:
        distributed.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], _Made]) -> _Made:
    """What rank 0 makes, on every rank; the others wait for it, and raise what it raises."""
    if num_ranks() == 1:
        return make()
    made: list[Any] = [None, None]
    if rank() == 0:
        try:
            made[0] = make()
        except Exception as error:
            made[1] = error
    distributed.broadcast_object_list(made, src=0)
    if made[1] is not None:
        raise made[1]
    return made[0]


def add(tensor: Tensor | None) -> Tensor | None:
    """The sum over the ranks, on the CPU; None is a rank that has nothing to add, which rank 0 can only be with all."""
    if num_ranks() == 1:
        return tensor
    if (like := from_first(lambda: None if tensor is None else (tensor.shape, tensor.dtype))) is None:
        return None
    # A group of NCCL alone, as a script of one's own may have joined, moves tensors of the device only.
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.zeros(like[0], dtype=like[1], device=device)
    if tensor is not None:
        total += tensor.to(device)
    distributed.all_reduce(total)
    return total.cpu()


def check_equal(what: str, value: object) -> None:
    """Raise ValueError on every rank unless all have the same value; it names the ranks that differ from rank 0."""
    values = gather(value)
    if others := [number for number, other in enumerate(values) if other != values[0]]:
        told = ", ".join(f"{values[number]} on rank {number}" for number in (0, *others[:3]))
        more = f" and others on {len(others) - 3} more" if len(others) > 3 else ""
        raise ValueError(f"{what} must be the same on every rank, got {told}{more}")


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the processes that torchrun has started, if it has, for as long as the context lasts.

    gloo moves what lies on the CPU, NCCL what lies on GPUs, of which each rank takes the one of its local number.

    Args:
        device: "cpu" or "cuda".

    Raises:
        ValueError: HREL_RANK_TIMEOUT_S is no number of seconds above 0.
        ConnectionError: another rank was killed or does not answer, or this one was told to stop, as torchrun tells
            those that are left.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    seconds = _timeout_s()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    number, total = (os.environ[name] for name in ("RANK", "WORLD_SIZE"))
    started = not distributed.is_initialized()
    before = signal.signal(signal.SIGTERM, partial(_stop, f"rank {number} of {total}"))
    try:
        if started:
            _start("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timedelta(seconds=seconds))
        yield
    except RuntimeError as error:  # gloo has no class of its own
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
            raise
        raise ConnectionError(
            f"rank {number} of {total} has lost another one, which was killed or did not answer within {seconds:g} s "
            f"({TIMEOUT}): {error}"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)
        if started and distributed.is_initialized():
            distributed.destroy_process_group()


def _start(backend: str, timeout: timedelta) -> None:
    store, number, total = next(distributed.rendezvous("env://", timeout=timeout))
    # The store outlives the group, and where torchrun restarts the processes them, too, with addresses that are void.
    prefix = f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}, group {next(_groups)}"
    store = distributed.PrefixStore(prefix, store)
    distributed.init_process_group(backend, store=store, rank=number, world_size=total, timeout=timeout)


def _timeout_s() -> float:
    text = os.environ.get(TIMEOUT, str(DEFAULT_TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{TIMEOUT} must be a number of seconds above 0, got {text!r}")
    return seconds


def _stop(name: str, number: int, frame: FrameType | None) -> NoReturn:
    raise ConnectionError(f"{name} was told to stop, as torchrun does when another one has ended")
