"""The command line: ``hrel prune`` runs an experiment, ``hrel doctor`` says what is installed and what runs here."""
# SPDX-License-Identifier: MIT

import dataclasses
import importlib
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
except ImportError as error:
    raise ImportError(f"the command line needs {error.name}: pip install 'hrel_ext[cli,prune,zoo]'") from error

import torch

from hrel_ext import build_info
from hrel_ext.collect import Batch
from hrel_ext.recipes import RECIPES, Recipe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prune convolutional networks by HRel: the filters whose maps tell least about the class labels go first.",
)
console = Console()


@app.command("prune")
def prune_command(
    model: Annotated[
        str | None, typer.Argument(help="Network: " + ", ".join(sorted({m for m, _ in RECIPES})) + ".")
    ] = None,
    data: Annotated[str, typer.Option(help="Data: " + ", ".join(sorted({d for _, d in RECIPES})) + ".")] = "digits",
    data_dir: Annotated[
        Path | None, typer.Option(envvar="HREL_DATA_DIR", help="Folder of the data as torchvision lays it out.")
    ] = None,
    limit: Annotated[list[str] | None, typer.Option(help="LAYER=FILTERS to end with; repeatable.")] = None,
    percent: Annotated[list[str] | None, typer.Option(help="LAYER=PERCENT to remove per cycle; repeatable.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Training epochs before pruning.")] = None,
    cycle_epochs: Annotated[int | None, typer.Option(min=1, help="Retraining epochs in each cycle.")] = None,
    final_epochs: Annotated[int | None, typer.Option(min=1, help="Training epochs after the last cycle.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Order of the entropy; 1 is Shannon.")] = None,
    sigma: Annotated[str | None, typer.Option(help="Kernel width: layer, filter, or a number.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, splits and training.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Folder for the results; runs/MODEL-DATA if not given.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would go, of any network, and stop.")] = False,
    own: Annotated[
        str | None, typer.Option("--model", help="With --plan: PACKAGE.MODULE:FUNCTION that makes a network of yours.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="With --plan: macs=SHARE or params=SHARE left, or latency_ms=MS.")
    ] = None,
    residual: Annotated[str, typer.Option(help="With --plan: inner, or stream to prune residual streams.")] = "inner",
    round_to: Annotated[int, typer.Option(min=1, help="With --plan: filters are a multiple of this.")] = 1,
    min_channels: Annotated[int, typer.Option(min=1, help="With --plan: filters a layer keeps.")] = 1,
    max_ratio: Annotated[float, typer.Option(help="With --plan: largest share of a layer's filters that goes.")] = 1.0,
    input_shape: Annotated[
        str | None, typer.Option("--input", help="With --plan: C,H,W of a sample; that of the data if not given.")
    ] = None,
) -> None:
    """Train a network, prune it by relevance in cycles, retrain it, and compare before and after."""
    if (model is None) == (own is None):
        raise ValueError("either MODEL or --model must be given, got " + ("both" if model else "none"))
    if plan:
        rules = {"residual": residual, "round_to": round_to, "min_channels": min_channels, "max_ratio": max_ratio}
        _print_plan(model, own, data, input_shape, target, _pairs("--limit", limit or [], int), device, rules)
        return
    if own or target:
        raise ValueError(f"{'--model' if own else '--target'} must come with --plan, got no --plan")
    from hrel_ext.experiment import Observer, run
    from hrel_ext.zoo.data import DATASETS

    recipe = _recipe(model, data, limit or [], percent or [], alpha, sigma)
    recipe = dataclasses.replace(
        recipe,
        baseline=dataclasses.replace(recipe.baseline, epochs=epochs or recipe.baseline.epochs),
        cycle=dataclasses.replace(recipe.cycle, epochs=cycle_epochs or recipe.cycle.epochs),
        final=dataclasses.replace(recipe.final, epochs=final_epochs or recipe.final.epochs),
    )
    splits = DATASETS[data](data_dir, seed)
    output = output or Path("runs") / f"{model}-{data}"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = _Bars(bars)
        observer = Observer(bar.on_stage, bar.on_epoch, bar.on_cycle, bar.scoring)
        report = run(recipe, splits, seed=seed, device=device, output=output, command=_command(), observer=observer)
    console.print(_results_table(report))
    files = "model.safetensors, model.pt, plan.json, report.json"
    console.print(f"{report['seconds']['total']:.0f} s on {device}; written to {output}/: {files}")


@app.command("doctor")
def doctor_command() -> None:
    """Print versions, the kernels that were built, and what a call would run on this machine."""
    info = build_info()
    table = Table(title="hrel doctor", show_header=False)
    table.add_row("hrel_ext", info["version"])
    table.add_row("torch", torch.__version__)  # names its build, such as +cpu, which the package's version omits
    for package in ("numpy", "torch-pruning", "accelerate", "torchvision", "scikit-learn"):
        table.add_row(package, _version(package))
    table.add_row("python", sys.version.split()[0])
    table.add_row("compiler", info["compiler"])
    table.add_row("ISA levels built", ", ".join(info["isa_levels_built"]))
    table.add_row("ISA level in use", info["isa_level"])
    table.add_row("threads", str(torch.get_num_threads()))
    table.add_row("CUDA kernels built", ", ".join(f"sm_{a}" for a in info["cuda_architectures"]) or "none")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    table.add_row("GPU", f"{gpu} (torch built for CUDA {torch.version.cuda or 'not at all'})")
    table.add_row("relevance on CPU tensors", f"compiled kernels, {info['isa_level']}")
    table.add_row("relevance on CUDA tensors", _cuda_path(info["cuda_largest_num_samples"]))
    console.print(table)


def main() -> None:
    """Entry point: a mistake of the user ends in one line and exit status 2, without a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(f"hrel: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


def _print_plan(
    name: str | None,
    own: str | None,
    data: str,
    input_shape: str | None,
    target: str | None,
    limits: dict[str, int],
    device: str,
    rules: dict[str, object],
) -> None:
    """Print what a pruning would remove from a network with random weights, and why the rest stays."""
    from hrel_ext.pruning import plan
    from hrel_ext.zoo.data import SHAPES
    from hrel_ext.zoo.models import MODELS

    if own is None and name not in MODELS:
        raise ValueError(f"MODEL must be one of {', '.join(MODELS)}, got {name!r}")
    if input_shape is None and data not in SHAPES:
        raise ValueError(f"--data must be one of {', '.join(SHAPES)}, got {data!r}")
    shape = SHAPES[data] if input_shape is None else _shape(input_shape)
    if target is None and not limits and (name, data) in RECIPES:
        limits = dict(RECIPES[name, data].limits)
    goal = None if target is None else _target(target, device)
    network = _own(own) if own else MODELS[name]()
    made = plan(network, torch.zeros(1, *shape), target=goal, limits=limits or None, **rules)
    table = Table(title=f"plan for {own or name} on {' x '.join(map(str, shape))}: {target or 'limits'}")
    table.add_column("layer", overflow="fold")
    for column in ("filters", "asked", "got", "MACs", "parameters"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in made.layers:
        table.add_row(
            layer.name if layer.group in (None, layer.name) else f"{layer.name} (with {layer.group})",
            f"{layer.before} > {layer.after}",
            f"{100 * layer.asked:.0f} %",
            f"{100 * layer.got:.0f} %",
            f"{_short(layer.macs_before)} > {_short(layer.macs_after)}",
            f"{_short(layer.parameters_before)} > {_short(layer.parameters_after)}",
        )
    console.print(table)
    before, after = made.before, made.after
    console.print(f"MACs {before.macs:,} > {after.macs:,}: {100 * after.macs / before.macs:.2f} % left")
    share = 100 * after.parameters / before.parameters
    console.print(f"parameters {before.parameters:,} > {after.parameters:,}: {share:.2f} % left")
    if made.latency_ms:
        console.print("latency {:.2f} > {:.2f} ms, measured on {}".format(*made.latency_ms, device))
    reasons: dict[str, list[str]] = {}
    for layer in made.layers:
        if layer.reason:
            reasons.setdefault(layer.reason, []).append(layer.name)
    for reason, names in reasons.items():
        console.print(f"not pruned, {reason}: {', '.join(names)}", markup=False, highlight=False)


def _short(number: int) -> str:
    """Three figures: 18.4k, 2.36M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _own(path: str) -> torch.nn.Module:
    """The network that PACKAGE.MODULE:FUNCTION makes; modules in the working directory are found, too."""
    module, _, function = path.partition(":")
    if not module or not function:
        raise ValueError(f"--model must be PACKAGE.MODULE:FUNCTION, got {path!r}")
    sys.path.insert(0, os.getcwd())
    make = getattr(importlib.import_module(module), function, None)
    try:
        network = make()
    except TypeError as error:
        network = error
    if not isinstance(network, torch.nn.Module):
        raise ValueError(
            f"--model must name a function without arguments that returns a torch.nn.Module, got {path!r}: {network}"
        )
    return network


def _target(text: str, device: str) -> dict[str, float | str]:
    ((name, value),) = _pairs("--target", [text], float).items()
    return {name: value, "device": device} if name == "latency_ms" else {name: value}


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise ValueError(f"--input must be C,H,W, got {text!r}")
    return tuple(map(int, parts))


class _Bars:
    """Progress bars of the stage that is running, and a line for everything that is done."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._stage, self._task = "", None

    def on_stage(self, name: str, epochs: int) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._stage, self._task = name, self._bars.add_task(f"{name}: training", total=epochs)

    def on_epoch(self, epoch) -> None:
        accuracy = f"{100 * epoch.validation.accuracy:.2f} %"
        self._bars.update(self._task, advance=1, description=f"{self._stage}: training, validation {accuracy}")
        if self._bars.tasks and self._bars.tasks[-1].finished and not self._stage.startswith("cycle"):
            self._bars.console.print(f"{self._stage}: validation accuracy {accuracy} in the last epoch")

    def on_cycle(self, cycle) -> None:
        filters = ", ".join(f"{name} {n}" for name, n in cycle.filters.items())
        self._bars.console.print(f"cycle {cycle.number}: {filters}; validation accuracy {100 * cycle.accuracy:.2f} %")

    def scoring(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        task = self._bars.add_task("scoring the filters", total=len(batches))
        yield from self._bars.track(batches, task_id=task)
        self._bars.remove_task(task)  # or every cycle would leave a full bar on the screen


def _recipe(
    model: str, data: str, limit: list[str], percent: list[str], alpha: float | None, sigma: str | None
) -> Recipe:
    if (model, data) not in RECIPES:
        known = ", ".join(f"{m} --data {d}" for m, d in RECIPES)
        raise ValueError(f"MODEL and --data must be one of: {known}; got {model} --data {data}")
    recipe = RECIPES[model, data]
    if not 0 < (recipe.alpha if alpha is None else alpha) < float("inf"):
        raise ValueError(f"--alpha must be > 0 and finite, got {alpha}")
    return dataclasses.replace(
        recipe,
        limits={**recipe.limits, **{name: int(n) for name, n in _pairs("--limit", limit, int).items()}},
        shares={**recipe.shares, **{name: p / 100 for name, p in _pairs("--percent", percent, float).items()}},
        alpha=recipe.alpha if alpha is None else alpha,
        sigma=recipe.sigma if sigma is None else _sigma(sigma),
    )


def _pairs(option: str, texts: list[str], kind: type) -> dict[str, float]:
    pairs = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            pairs[name] = kind(value)
        except ValueError:
            raise ValueError(
                f"{option} must be LAYER={'NUMBER' if kind is float else 'INTEGER'}, got {text!r}"
            ) from None
    return pairs


def _sigma(text: str) -> float | str:
    if text in ("layer", "filter"):
        return text
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"--sigma must be layer, filter or a number > 0, got {text!r}")
    return value


def _results_table(report: dict) -> Table:
    table = Table(title=f"{report['recipe']['model']} on {report['recipe']['data']}, seed {report['seed']}")
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    before, after = report["before"], report["after"]
    for layer, n in report["filters"]["before"].items():
        left = report["filters"]["after"][layer]
        table.add_row(f"filters, {layer}", str(n), str(left), f"{100 * (left / n - 1):+.1f} %")
    for key, name in (("parameters", "parameters"), ("macs", "MACs"), ("conv_macs", "MACs, conv layers")):
        table.add_row(name, f"{before[key]:,}", f"{after[key]:,}", f"{100 * (after[key] / before[key] - 1):+.2f} %")
    latency = f"latency, ms (batch {before['latency_batch_size']}, {before['latency_threads']} threads)"
    change = after["latency_ms"] / before["latency_ms"] - 1
    table.add_row(latency, f"{before['latency_ms']:.2f}", f"{after['latency_ms']:.2f}", f"{100 * change:+.1f} %")
    for key, name in (("validation_accuracy", "validation accuracy"), ("test_accuracy", "test accuracy")):
        points = 100 * (after[key] - before[key])
        table.add_row(name, f"{100 * before[key]:.2f} %", f"{100 * after[key]:.2f} %", f"{points:+.2f} points")
    return table


def _cuda_path(largest_num_samples: int | None) -> str:
    if largest_num_samples is None:
        return "no CUDA device"
    if largest_num_samples == 0:
        return "plain PyTorch, with a warning that says why"
    return f"compiled kernels up to {largest_num_samples} samples, above that plain PyTorch"


def _command() -> str:
    return shlex.join(["hrel", *sys.argv[1:]]) if os.path.basename(sys.argv[0]) == "hrel" else shlex.join(sys.argv)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
