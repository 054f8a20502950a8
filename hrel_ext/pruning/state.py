"""What has to follow when a network loses channels: its batch norm statistics, and a way back."""
# SPDX-License-Identifier: MIT

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from hrel_ext import _ranks
from hrel_ext.collect import Batch, evaluation_mode

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Estimate the running statistics of all batch norms anew, in place: the plain mean over the mini-batches.

    Everything but these layers is in eval mode, without gradients; modes and momenta are restored, also after an error.
    Ranks of torch.distributed share the mini-batches and end with the same statistics.

    Args:
        model: the network; weights are not changed.
        batches: pairs of inputs (N, ...) and labels; moved to the device of the model. Not read if there is nothing to
            estimate.

    Returns:
        The number of layers that were estimated anew.

    Raises:
        ValueError: no batches.
    """
    norms: list[Any] = [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.track_running_stats]
    if not norms:
        return 0
    device = next(model.parameters()).device
    momenta = [norm.momentum for norm in norms]
    count = 0
    with evaluation_mode(model), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean
                norm.training = True
            for inputs, _ in _ranks.own(batches):
                model(inputs.to(device))
                count += 1
            total = sum(_ranks.gather(count))
            if _ranks.num_ranks() > 1 and total:
                for statistic in (each for norm in norms for each in (norm.running_mean, norm.running_var)):
                    statistic.copy_(cast(Tensor, _ranks.add(statistic.double().cpu() * count)) / total)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if not total:
        raise ValueError("batches must hold at least one mini-batch, got none")
    return len(norms)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The state of a network as safetensors takes it: on the CPU, contiguous, and no two names with one memory, which
    a module that has two names gives its weights."""
    tensors: dict[str, Tensor] = {}
    taken = set()
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in taken else tensor
        taken.add(memory)
    return tensors


class Snapshot:
    """A network, and an optimizer if one is given, as they are now.

    Pruning replaces parameters, so the old ones are kept together with a copy of their numbers.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._modules = [
            (
                module,
                {name: value for name, value in vars(module).items() if not name.startswith("_")},
                {name: _copied(parameter) for name, parameter in module._parameters.items()},
                {name: _copied(buffer) for name, buffer in module._buffers.items()},
            )
            for module in model.modules()
        ]
        self._optimizer = optimizer
        if optimizer:
            self._parameters = [list(group["params"]) for group in optimizer.param_groups]
            self._state = {
                parameter: {k: _copied(v) if isinstance(v, Tensor) else (v, v) for k, v in state.items()}
                for parameter, state in optimizer.state.items()
            }

    def restore(self) -> None:
        """Give network and optimizer back what they had, the very same parameters; gradients are dropped."""
        for module, attributes, parameters, buffers in self._modules:
            for name, value in attributes.items():
                setattr(module, name, value)
            module._parameters.update({name: _restored(*pair) for name, pair in parameters.items()})
            module._buffers.update({name: _restored(*pair) for name, pair in buffers.items()})
        if self._optimizer:
            for group, own in zip(self._optimizer.param_groups, self._parameters, strict=True):
                group["params"] = own
            self._optimizer.state.clear()
            for parameter, state in self._state.items():
                self._optimizer.state[parameter] = {name: _restored(*pair) for name, pair in state.items()}


def _copied(tensor: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return tensor, None if tensor is None else tensor.detach().clone()


def _restored(tensor: Any, copy: Any) -> Any:
    if isinstance(tensor, Tensor):
        tensor.grad = None
        with torch.no_grad():
            tensor.copy_(copy)
    return tensor
