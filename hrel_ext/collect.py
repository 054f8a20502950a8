"""Scores of a model's filters over mini-batches, collected by forward hooks in bounded memory.

The score of a filter is the plain mean over the mini-batches of its relevance I(A_f; Y), in bits.
"""
# SPDX-License-Identifier: MIT

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hrel_ext._batch import Classes, prepare, sort_by_class
from hrel_ext.relevance import terms_of_batch

Batch = tuple[Tensor, Tensor]  # (N, ...) inputs and (N,) integer labels


@dataclass(frozen=True, eq=False)
class LayerScores:
    """The relevance of each filter of one layer in each mini-batch, in bits.

    Attributes:
        per_batch: (num_batches, F), float32 on the CPU.
    """

    per_batch: Tensor

    @property
    def mean(self) -> Tensor:
        """The score of each filter, (F,), bits: every mini-batch has the same weight."""
        return self.per_batch.mean(dim=0)

    @property
    def std(self) -> Tensor:
        """The spread of each filter over the mini-batches (unbiased), (F,), bits; zeros for a single mini-batch."""
        return self.per_batch.std(dim=0) if len(self.per_batch) > 1 else torch.zeros_like(self.per_batch[0])


def collect(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    layers: Mapping[str, str | nn.Module] | Iterable[str] | None = None,
    sigma: float | Tensor | str | None = None,
    alpha: float = 1.01,
    label_sigma: float = 0.1,
    progress: Callable[[Iterable[Batch]], Iterable[Batch]] | None = None,
) -> dict[str, LayerScores]:
    """Score the filters of several layers over a loader, in eval mode and without gradients.

    Each layer is scored inside the forward pass, so the maps of one layer and one mini-batch are all that is kept. The
    estimate depends on the batch size (it is biased), so a smaller last mini-batch is left out unless it is the only
    one. The train or eval mode of every module is restored, also after an error.

    Args:
        model: called as ``model(inputs)``; its parameters and buffers are not changed.
        batches: pairs of inputs (N, ...) and integer labels (N,), all with the same N except for the last one. They
            are moved to the device of the model's first parameter.
        layers: names of the modules to score; or a mapping from the names in the result to the modules (or their
            names) whose outputs (N, F, ...) are scored, say ``{"conv1": "pool1"}``; None takes every ``nn.Conv2d``.
        sigma: kernel width in exp(-d^2 / sigma^2), as in `hrel_ext.relevance`; None is one per layer and mini-batch.
        alpha: order of the entropy.
        label_sigma: kernel width of the labels.
        progress: wraps ``batches``, for example in a progress bar.

    Returns:
        For each layer, in the order of ``layers``, its `LayerScores`.

    Raises:
        ValueError: a name that is no module, a layer that ran twice or never in a forward pass, an output that is not
            a tensor with two dimensions or more, no batches, batches of different sizes, a score that is not finite.
    """
    targets = _targets(model, layers)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    collected: dict[str, list[Tensor]] = {name: [] for name in targets}
    size = 0  # N of the first mini-batch
    leftover = 0  # N of a mini-batch of another size, allowed only at the end
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(evaluation_mode(model))
        for inputs, labels in progress(batches) if progress else batches:
            if leftover:
                raise ValueError(
                    f"batches must all have {size} samples like the first, the last excepted, got one with {leftover}"
                )
            size = size or len(labels)
            if len(labels) != size:
                leftover = len(labels)
                continue
            fresh: dict[str, Tensor] = {}
            classes = sort_by_class(labels.to(device))  # once for all layers
            with ExitStack() as hooks:
                for name, module in targets.items():
                    hook = _scorer(name, fresh, classes, sigma, alpha, label_sigma)
                    hooks.enter_context(module.register_forward_hook(hook))
                model(inputs.to(device))
            if silent := [name for name in targets if name not in fresh]:
                raise ValueError(f"layers must run once in a forward pass, got no output from {', '.join(silent)}")
            for name, scores in fresh.items():
                _check_finite(name, scores, batch=len(collected[name]))
                collected[name].append(scores)
    if not size:
        raise ValueError("batches must hold at least one mini-batch, got none")
    return {name: LayerScores(torch.stack(scores)) for name, scores in collected.items()}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode; give each of its modules its own mode back at the end, also after an error."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training  # not .train(), which would change the children too


def _targets(model: nn.Module, layers: Mapping[str, str | nn.Module] | Iterable[str] | None) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    if layers is None:
        layers = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    if isinstance(layers, str):
        raise ValueError(f"layers must be a collection of names, got the string {layers!r}")
    wanted = dict(layers) if isinstance(layers, Mapping) else {name: name for name in layers}
    if not wanted:
        raise ValueError("layers must name at least one module, got none")
    for where in wanted.values():
        if isinstance(where, str) and where not in modules:
            raise ValueError(
                f"layers must be among the model's modules ({', '.join(filter(None, modules))}), got {where!r}"
            )
    return {name: modules[where] if isinstance(where, str) else where for name, where in wanted.items()}


def _scorer(
    name: str,
    fresh: dict[str, Tensor],
    classes: Classes,
    sigma: float | Tensor | str | None,
    alpha: float,
    label_sigma: float,
) -> Callable[..., None]:
    """A forward hook that puts the relevance of the module's output, (F,), into ``fresh``."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if name in fresh:
            raise ValueError(f"layers must run once in a forward pass, got {name!r} twice")
        if not isinstance(output, Tensor) or output.dim() < 2:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"the output of layer {name!r} must be a tensor of shape (N, F, ...), got {got}")
        try:
            terms = terms_of_batch(prepare(output, classes, label_sigma), sigma, alpha)
            fresh[name] = terms.relevance.float().cpu()  # (F,)
        except ValueError as error:  # what scores a batch does not know which layer it is of
            raise ValueError(f"layer {name!r}: {error}") from error

    return hook


def _check_finite(name: str, scores: Tensor, batch: int) -> None:
    if bad := (~scores.isfinite()).nonzero().flatten().tolist():
        raise ValueError(
            f"scores must be finite, got {scores[bad[0]].item()} for filter {bad[0]} of layer {name!r} in batch {batch}"
            + (f" ({len(bad)} such filters)" if len(bad) > 1 else "")
        )
