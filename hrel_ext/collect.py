"""Scores of a model's filters over mini-batches, collected inside the forward pass in bounded memory.

The score of a filter is the plain mean over the mini-batches of its relevance I(A_f; Y), in bits.
"""
# SPDX-License-Identifier: MIT

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from hrel_ext import _ranks
from hrel_ext._batch import Classes, positive, prepare
from hrel_ext._batch import widths as widths_of
from hrel_ext._ops import result_dtype
from hrel_ext.null import draw_permutations, null_of_batch
from hrel_ext.relevance import filter_widths, terms_of_batch
from hrel_ext.scores import Header, IndistinguishableScoresWarning, LayerScores, Rows, Scores, versions, weight_hash

Batch = tuple[Tensor, Tensor]  # (N, ...) inputs and (N,) integer labels
Sigma = float | Tensor | str | None
_Scored = TypeVar("_Scored")

WHERE = ("conv", "bn", "relu", "pool")
"""The tensors that `collect` can score for a convolution."""

PAPER_WHERE: Mapping[str, str] = {
    "lenet5": "conv",  # before ReLU and pool
    "vgg16": "relu",  # after convolution, batch norm and ReLU, before the pool
    "resnet56": "conv",  # before batch norm, every convolution of the blocks
    "resnet110": "conv",  # no experiment in HRel's code: as ResNet-56
    "resnet50": "conv",  # before batch norm, conv1 and conv2 of each bottleneck
}
"""Architecture to the tensor that HRel's published code scores, as ``where`` of `collect`."""

# What PyTorch calls the functions behind its modules, functional or method forms alike, without trailing underscores.
_NORMS = {"batch_norm", "group_norm", "instance_norm"}
_ACTIVATIONS = set(
    "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh "
    "softplus softsign log_sigmoid logsigmoid tanhshrink hardshrink softshrink threshold clamp clamp_min clip".split()
)
# In eval mode these hand the same values on; the first three are dropout by its several names.
_SAME_VALUES = set(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout "
    "contiguous clone detach to type float half bfloat16 double".split()
)


def collect(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    layers: Mapping[str, str | nn.Module] | Iterable[str] | None = None,
    where: str = "conv",
    sigma: Sigma = None,
    alpha: float = 1.01,
    label_sigma: float = 0.1,
    permutations: int = 0,
    seed: int = 0,
    max_bytes: int | None = None,
    progress: Callable[[Iterable[Batch]], Iterable[Batch]] | None = None,
) -> Scores:
    """Score the filters of several layers over a loader, in eval mode and without gradients.

    The score of filter f is the mean over the mini-batches b of its relevance, I_f = sum_b I(A_bf; Y_b) / B.

    Each layer is scored inside the forward pass, the moment its tensor is there, so an in-place operation that follows
    changes no score, and the maps of one layer and one mini-batch are all that is looked at. What is kept is bounded,
    see `LayerScores`. The estimate depends on the batch size (it is biased), so a smaller last mini-batch is left out
    unless it is the only one. The train or eval mode of every module is restored and every hook removed, also after an
    error.

    Autocast may be on, around the call or inside the model: half precision maps are scored in float32.

    In a process group of torch.distributed all ranks must call this, with the same model and loader: rank r of n scores
    the mini-batches r, r + n, ... alone, and every rank returns the table of all of them.

    Args:
        model: called as ``model(inputs)``; its parameters and buffers are not changed.
        batches: pairs of inputs (N, ...) and integer labels (N,), all with the same N except for the last one. They
            are moved to the device of the model's first parameter.
        layers: names of the modules to score; or a mapping from the names in the result to the modules (or their
            names) whose outputs (N, F, ...) are scored, say ``{"conv1": "pool1"}``; None takes every ``nn.Conv2d``.
        where: the tensor that is scored for a convolution. "conv" is its own output, and the only choice for modules
            of other kinds. "bn", "relu" and "pool" are the output of the first normalisation (batch, group, instance),
            activation function (of any kind) or pool that takes the output of the convolution, directly or through
            others of the three, whether it is a module, a function or a method, in place or not. A convolution whose
            output goes elsewhere first, such as into an addition, has no such tensor and is refused by name. The
            papers' settings are in `PAPER_WHERE`.
        sigma: kernel width in exp(-d^2 / sigma^2), as in `hrel_ext.relevance`; None is one per layer and mini-batch.
        alpha: order of the entropy.
        label_sigma: kernel width of the labels.
        permutations: draws of the label-permutation null, R; 0 makes none. Labels are permuted within each mini-batch,
            and draw r of the null of the mean is the mean over the mini-batches of their draws r.
        seed: of the permutations, >= 0.
        max_bytes: the most that scoring copies of a layer's maps at a time; more is taken in groups of filters, with
            the same results to the last bit. A copy is made of half precision on the CPU (in float32) and of maps whose
            height and width are no single stride, of nothing else. None takes all filters of a layer at once. The ops'
            own scratch, a few N x N matrices per thread, and the tensors of the forward pass do not count.
        progress: wraps ``batches``, for example in a progress bar.

    Returns:
        A table of `LayerScores` in bits, in the order of ``layers``. It knows what it was made from, and saves to and
        loads from one file.

    Raises:
        TypeError, ValueError: a name that is no module, a layer that ran twice or never in a forward pass or has not
            the tensor of ``where``, an output that is not a tensor with two dimensions or more, no batches, batches of
            different sizes or not the same on all ranks, a score that is not finite, a limit of memory that cannot be
            kept.

    Warns:
        IndistinguishableScoresWarning: the mini-batches do not tell the filters of a layer apart, by the test of
            `LayerScores.agreement` at the level of 0.05. A single mini-batch cannot decide it and gives no warning.

    Source: Sarvani et al., HRel, Neural Networks 147 (2022), doi 10.1016/j.neunet.2021.12.017, and its published code.

    Example:
        >>> import torch, hrel_ext
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        >>> labels = torch.arange(20) % 4
        >>> batches = [(torch.randn(20, 1, 6, 6) + labels[:, None, None, None], labels) for _ in range(3)]
        >>> scores = hrel_ext.collect(model, batches, where="relu")
        >>> scores
        Scores(3 mini-batches of 20; '0': 4 filters)
        >>> layer = scores["0"]
        >>> layer.per_batch.shape, layer.widths.shape, layer.distinguishable
        (torch.Size([3, 4]), torch.Size([3]), True)
    """
    targets = targets_of(model, layers)
    check_where(where, targets)
    scorer = _Scorer(sigma, positive("alpha", alpha), positive("label_sigma", label_sigma), max_bytes)
    for name, value in (("permutations", permutations), ("seed", seed)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    generator = torch.Generator().manual_seed(seed)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    table = {name: _Columns() for name in targets}
    size = count = 0  # N, B
    shared = _ranks.shared(batches)
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(evaluation_mode(model))
        for count, (inputs, labels) in enumerate(full_batches(progress(shared) if progress else shared), start=1):
            size = len(labels)
            shuffles = None
            if permutations:  # (R, N), the same for all layers; those of other ranks are drawn, too
                shuffles = draw_permutations(permutations, size, generator).to(device)
            if not _ranks.is_own(count - 1):
                continue
            classes = Classes(labels.to(device))  # sorted once for all layers
            score = partial(scorer.score, classes=classes, permutations=shuffles, number=count - 1)
            for name, terms in score_forward_pass(model, inputs.to(device), targets, where, score).items():
                table[name].append(name, count - 1, terms)
    names = {module: name for name, module in model.named_modules()}
    header = Header(
        modules={name: names.get(module, type(module).__name__) for name, module in targets.items()},
        where=where,
        sigma="layer" if sigma is None else sigma if isinstance(sigma, str) else "given",
        alpha=float(alpha),
        label_sigma=float(label_sigma),
        permutations=permutations,
        seed=seed,
        batch_size=size,
        versions=versions(),
        weights=weight_hash(model),
    )
    scores = Scores({name: columns.layer_scores(count) for name, columns in table.items()}, header)
    _warn_of_indistinguishable(scores)
    return scores


def full_batches(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Mini-batches of one size, in one pass: a smaller last one is left out unless it is the only one.

    Args:
        batches: pairs of inputs (N, ...) and labels (N,).

    Raises:
        ValueError: none at all, one of another size before the last, or other labels than on another rank.
        RuntimeError: ``batches`` raised, for which mini-batch and what.
    """
    size = 0  # N of the first mini-batch
    leftover = 0  # N of a mini-batch of another size, allowed only at the end
    checksum = _ranks.Checksum()
    for inputs, labels in _numbered_errors(batches):
        checksum.add(labels)
        if leftover:
            raise ValueError(
                f"batches must all have {size} samples like the first, the last excepted, got one with {leftover}"
            )
        size = size or len(labels)
        if len(labels) == size:
            yield inputs, labels
        else:
            leftover = len(labels)
    checksum.check()
    if not size:
        raise ValueError("batches must hold at least one mini-batch, got none")


def _numbered_errors(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The mini-batches; what their loader raises tells which of them it was."""
    iterator, number = iter(batches), 0
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise RuntimeError(f"batches failed to give batch {number}: {type(error).__name__}: {error}") from error
        yield batch
        number += 1


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


def targets_of(model: nn.Module, layers: Mapping[str, str | nn.Module] | Iterable[str] | None) -> dict[str, nn.Module]:
    """Names in the result to modules, for ``layers`` as `collect` takes them."""
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


def check_where(where: str, targets: Mapping[str, nn.Module]) -> None:
    """Raise ValueError unless ``where`` is one of `WHERE`, and the targets are convolutions unless it is "conv"."""
    if where not in WHERE:
        raise ValueError(f"where must be one of {', '.join(map(repr, WHERE))}, got {where!r}")
    if where == "conv":
        return
    for name, module in targets.items():
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            raise ValueError(
                f"where must be 'conv' unless all layers are convolutions, got {where!r} for {name!r}, "
                f"a {type(module).__name__}"
            )


class _Terms(NamedTuple):
    """What scoring gives for one layer and one mini-batch, on the CPU."""

    relevance: Tensor  # (F,) float32, bits
    widths: Tensor  # () or (F,) float32
    null: Tensor | None  # (R, F) float32, bits


@dataclass
class _Columns:
    """What is kept of one layer: the scores of the mini-batches, and of the null the sum."""

    relevance: Rows = field(default_factory=Rows)
    widths: Rows = field(default_factory=Rows)
    null_sum: Tensor | None = None  # (R, F), float64

    def append(self, name: str, batch: int, terms: _Terms) -> None:
        _check_finite(name, terms.relevance, batch)
        self.relevance.append(batch, terms.relevance)
        self.widths.append(batch, terms.widths)
        if terms.null is not None:
            self.null_sum = terms.null.double() + (0 if self.null_sum is None else self.null_sum)

    def layer_scores(self, count: int) -> LayerScores:
        """Of all ranks, which have met ``count`` mini-batches."""
        per_batch, moments = self.relevance.together(count)
        null_sum = _ranks.add(self.null_sum)
        null = None if null_sum is None else (null_sum / count).float()
        return LayerScores(per_batch, self.widths.together(count)[0], null, moments)


@dataclass(frozen=True)
class _Scorer:
    """Scores the maps of one layer and one mini-batch, in groups of filters where memory is limited."""

    sigma: Sigma
    alpha: float
    label_sigma: float
    max_bytes: int | None

    def __post_init__(self) -> None:
        if self.max_bytes is None:
            return
        if not isinstance(self.max_bytes, int) or isinstance(self.max_bytes, bool):
            raise TypeError(f"max_bytes must be an int or None, got {type(self.max_bytes).__name__}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be >= 1, got {self.max_bytes}")

    def score(self, name: str, maps: object, *, classes: Classes, permutations: Tensor | None, number: int) -> _Terms:
        if not isinstance(maps, Tensor) or maps.dim() < 2:
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(f"the output of layer {name!r} must be a tensor of shape (N, F, ...), got {got}")
        parts, group = [], slice(None)
        # Autocast would let what the ops are composed of run in half precision.
        with torch.autocast(maps.device.type, enabled=False):
            try:
                # A tensor is checked against all filters before it is cut into groups.
                sigma = widths_of(self.sigma, maps) if isinstance(self.sigma, Tensor) else self.sigma
                for group in self._groups(maps):
                    some = sigma[group] if isinstance(sigma, Tensor) else sigma
                    parts.append(self._score_group(maps[:, group], some, classes, permutations))
            except ValueError as error:  # what scores a batch does not know which layer it is of, nor which group
                counted = f", counted from filter {group.start}" if group.start else ""
                raise ValueError(f"batch {number}, layer {name!r}{counted}: {error}") from error
        per_filter = isinstance(self.sigma, Tensor) or self.sigma == "filter"
        widths = torch.cat([part.widths for part in parts])  # (F,)
        return _Terms(
            torch.cat([part.relevance for part in parts]),
            widths if per_filter else widths[0],
            None if permutations is None else torch.cat([part.null for part in parts if part.null is not None], dim=1),
        )

    def _groups(self, maps: Tensor) -> list[slice]:
        """Of the filters, so that no group needs a larger copy than ``max_bytes``."""
        num_filters = maps.shape[1]
        if num_filters == 0:
            raise ValueError(f"its output must hold at least one filter (F >= 1), got shape {tuple(maps.shape)}")
        copied = _copied_bytes(maps)
        if self.max_bytes is None or copied * num_filters <= self.max_bytes:
            return [slice(None)]
        if self.sigma in (None, "layer"):
            raise ValueError(
                f"max_bytes must be at least {copied * num_filters} to search one width for the layer, which takes a "
                f'copy of all {num_filters} filters at once (give sigma, or take "filter"), got {self.max_bytes}'
            )
        step = self.max_bytes // copied
        if step == 0:
            raise ValueError(f"max_bytes must be at least {copied}, the copy of one filter, got {self.max_bytes}")
        return [slice(first, first + step) for first in range(0, num_filters, step)]

    def _score_group(self, maps: Tensor, sigma: Sigma, classes: Classes, permutations: Tensor | None) -> _Terms:
        """Of maps (N, f, ...); their copy lives as long as this call."""
        batch = prepare(maps, classes, self.label_sigma)
        widths = filter_widths(sigma, batch)  # (f,)
        if permutations is None:
            relevance, null = terms_of_batch(batch, widths, self.alpha).relevance, None  # (f,)
        else:
            result = null_of_batch(batch, widths, self.alpha, permutations)
            relevance, null = result.relevance, result.null.float().cpu()  # (f,), (R, f)
        return _Terms(relevance.float().cpu(), widths.float().cpu(), null)


def _copied_bytes(maps: Tensor) -> int:
    """How much `prepare` copies of each filter of maps (N, F, ...)."""
    first = maps[:1, :1]
    is_copied = first.dim() > 3 and first.flatten(2).data_ptr() != first.data_ptr()
    is_converted = maps.device.type != "cuda" and maps.dtype != result_dtype(maps)
    num_values = len(maps) * math.prod(maps.shape[2:])
    return num_values * (is_copied * maps.element_size() + is_converted * result_dtype(maps).itemsize)


def score_forward_pass(
    model: nn.Module,
    inputs: Tensor,
    targets: Mapping[str, nn.Module],
    where: str,
    score: Callable[[str, Any], _Scored],
) -> dict[str, _Scored]:
    """Run the model once; score each layer the moment its tensor is there.

    Args:
        model: called as ``model(inputs)``.
        inputs: (N, ...), on its device.
        targets: layer to its module, of `targets_of`.
        where: the tensor that is scored, checked by `check_where`.
        score: called as ``score(name, output)``, before the model has the output.

    Returns:
        Layer to what ``score`` returned, in the order of ``targets``.

    Raises:
        ValueError: a layer that ran twice or never, or has not the tensor of ``where``, see `refusals`.
    """
    scored: dict[str, _Scored] = {}

    def take(name: str, maps: object) -> None:
        if name in scored:
            what = f"{name!r}" if where == "conv" else f"a tensor after {where!r} for {name!r}"
            raise ValueError(f"layers must run once in a forward pass, got {what} twice")
        scored[name] = score(name, maps)

    follower = _Follower(where, take)
    with ExitStack() as stack:
        for name, module in targets.items():
            if where == "conv":
                stack.enter_context(module.register_forward_hook(lambda m, i, output, name=name: take(name, output)))
            else:
                stack.enter_context(module.register_forward_hook(partial(follower.start, name)))
        if where != "conv":
            stack.enter_context(follower)
        model(inputs)
    ran = scored if where == "conv" else follower.taken_by
    if silent := [name for name in targets if name not in ran]:
        raise ValueError(f"layers must run once in a forward pass, got no output from {', '.join(silent)}")
    if lacking := [name for name in targets if name not in scored]:
        lines = ", ".join(f"{name} (goes into {', '.join(follower.taken_by[name]) or 'nothing'})" for name in lacking)
        raise ValueError(f"layers must have the tensor of where={where!r}, got convolutions without it: {lines}")
    return {name: scored[name] for name in targets}


def refusals(model: nn.Module, inputs: Tensor, targets: Mapping[str, nn.Module], where: str) -> dict[str, str]:
    """Which layers `score_forward_pass` would refuse for such inputs, and why.

    Args:
        model, inputs, targets, where: as for `score_forward_pass`.

    Returns:
        Layer to the reason, in the order of ``targets``; without the layers that can be scored.
    """
    runs, taken = Counter[str](), Counter[str]()
    follower = _Follower(where, lambda name, maps: taken.update([name]))

    def count(name: str, module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        runs[name] += 1
        if where != "conv" and runs[name] == 1:
            follower.start(name, module, inputs, output)

    with ExitStack() as stack:
        for name, module in targets.items():
            stack.enter_context(module.register_forward_hook(partial(count, name)))
        if where != "conv":
            stack.enter_context(follower)
        model(inputs)
    reasons = {}
    for name in targets:
        if runs[name] != 1:
            reasons[name] = f"ran {runs[name]} times in a forward pass" if runs[name] else "never ran in a forward pass"
        elif where != "conv" and taken[name] != 1:
            several = f"has {taken[name]} tensors after {where!r}"
            nothing = f"goes into {', '.join(follower.taken_by[name]) or 'nothing'}, not {where!r}"
            reasons[name] = several if taken[name] else nothing
    return reasons


class _Follower(TorchFunctionMode):
    """Follows the outputs of convolutions through norms, activations and pools to the first result of one kind.

    A mode sees every call of PyTorch's Python functions, those of modules, ``torch.relu`` and ``x.relu_()`` alike, and
    a module that is called many times is followed call by call.

    Args:
        where: "bn", "relu" or "pool".
        take: called with the name of a layer and its tensor, before the model has it.
    """

    def __init__(self, where: str, take: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._where = where
        self._take = take
        self._names = WeakTensorKeyDictionary()  # the tensors that are followed, to the layers they are of
        self.taken_by: dict[str, list[str]] = {}  # layer that ran: what took its output, or what was made of it

    def start(self, name: str, module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        """A forward hook."""
        if name in self.taken_by:
            raise ValueError(f"layers must run once in a forward pass, got {name!r} twice")
        self.taken_by[name] = []
        self._names[output] = (*self._names.get(output, ()), name)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result[0] if isinstance(result, tuple | list) and result else result  # a pool may return indices too
        operation = func.__name__.strip("_")
        if isinstance(made, Tensor) or operation == "setitem":  # which changes its operand; others only ask, say a size
            for operand in _tensors((*args, *(kwargs or {}).values())):
                if names := self._names.get(operand):
                    self._step(operation, operand, made, names)
        return result

    def _step(self, operation: str, operand: Tensor, made: Tensor, names: tuple[str, ...]) -> None:
        if operation in _SAME_VALUES:
            self._names[made] = names
            return
        for name in names:
            if operation not in self.taken_by[name]:
                self.taken_by[name].append(operation)
        kind = _kind(operation)
        if made is operand or operation == "setitem":  # changed in place, so no longer what it was
            del self._names[operand]
        if kind == self._where:
            for name in names:
                self._take(name, made)
        elif kind:
            self._names[made] = names


def _kind(operation: str) -> str | None:
    if operation in _NORMS:
        return "bn"
    if operation in _ACTIVATIONS:
        return "relu"
    return "pool" if "pool" in operation and "unpool" not in operation else None


def _tensors(operands: Iterable[object]) -> Iterator[Tensor]:
    """The tensors among the operands and in lists of theirs, such as that of ``torch.cat``."""
    for operand in operands:
        if isinstance(operand, Tensor):
            yield operand
        elif isinstance(operand, list | tuple):
            yield from (item for item in operand if isinstance(item, Tensor))


def _check_finite(name: str, scores: Tensor, batch: int) -> None:
    if bad := (~scores.isfinite()).nonzero().flatten().tolist():
        raise ValueError(
            f"scores must be finite, got {scores[bad[0]].item()} for filter {bad[0]} of layer {name!r} in batch {batch}"
            + (f" ({len(bad)} such filters)" if len(bad) > 1 else "")
        )


def _warn_of_indistinguishable(scores: Scores) -> None:
    for name, layer in scores.items():
        if layer.distinguishable is False and (agreement := layer.agreement):
            concordance, p_value = agreement
            warnings.warn(
                f"layer {name!r}: {layer.count} mini-batches do not tell its {layer.per_batch.shape[1]} filters apart "
                f"(Friedman's test: p = {p_value:.2g}, Kendall's W = {concordance:.2g}); take more mini-batches, or do "
                "not rank these filters",
                IndistinguishableScoresWarning,
                stacklevel=3,
            )
