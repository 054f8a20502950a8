"""The command line: ``hrel prune`` and ``hrel run``, what becomes of a pruned network, ``hrel doctor``."""
# SPDX-License-Identifier: MIT

import dataclasses
import inspect
import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
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

from hrel_ext.collect import Batch
from hrel_ext.doctor import doctor
from hrel_ext.recipes import EXPERIMENTS, RECIPES, Recipe, Stage, general
from hrel_ext.zoo.data import DATASETS, SHAPES
from hrel_ext.zoo.models import MODELS, make_model

MOST_LAYERS = 8  # in what is printed of a run; of more there is the sum

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prune convolutional networks by HRel: the filters whose maps tell least about the class labels go first.",
)
# Of the processes that torchrun starts the first one speaks for all. A RANK alone may be that of another launcher.
RANK = int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0
console = Console(quiet=RANK > 0)

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="HREL_DATA_DIR", help="Folder of the data as torchvision lays it out."),
]
Limits = Annotated[list[str] | None, typer.Option("--limit", help="LAYER=FILTERS to end with; repeatable.")]
Plane = Annotated[
    int | None, typer.Option("--plane", min=1, help="Record the information plane, a point every so many steps.")
]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard into the folder tensorboard of the output.")
]
Weights = Annotated[
    str | None,
    typer.Option(help="Weights to start from: FILE.safetensors, or torchvision's, such as IMAGENET1K_V1."),
]
Download = Annotated[
    bool, typer.Option("--download-weights", help="Let torchvision download weights that are not in its cache.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of weights, splits and training.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Output = Annotated[
    Path | None, typer.Option("--output", help="Folder for the results, and for what a run needs to go on.")
]


@app.command("prune")
def prune_command(
    model: Annotated[str | None, typer.Argument(help=f"Network: {', '.join(MODELS)}.")] = None,
    own: Annotated[
        str | None, typer.Option("--model", help="In place of MODEL: PACKAGE.MODULE:FUNCTION that makes a network.")
    ] = None,
    data: Annotated[str, typer.Option(help=f"Data: {', '.join(DATASETS)}.")] = "digits",
    data_dir: DataDir = None,
    target: Annotated[
        str | None, typer.Option(help="Budget: macs=SHARE or params=SHARE that is left, or latency_ms=MS.")
    ] = None,
    cycles: Annotated[int | None, typer.Option(min=1, help="Cycles in which a budget is reached.")] = None,
    limit: Limits = None,
    percent: Annotated[list[str] | None, typer.Option(help="LAYER=PERCENT to remove per cycle; repeatable.")] = None,
    residual: Annotated[str | None, typer.Option(help="inner, or stream to prune residual streams.")] = None,
    round_to: Annotated[int | None, typer.Option(min=1, help="Filters are a multiple of this.")] = None,
    min_channels: Annotated[int | None, typer.Option(min=1, help="Filters a layer keeps.")] = None,
    max_ratio: Annotated[float | None, typer.Option(help="Largest share of a layer's filters that goes.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Stop and roll back when validation falls by more points than this.")
    ] = None,
    criterion: Annotated[str | None, typer.Option(help="What ranks the filters, such as hrel, l1, taylor.")] = None,
    where: Annotated[str | None, typer.Option(help="Tensor that is scored: conv, bn, relu or pool.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Order of the entropy; 1 is Shannon.")] = None,
    sigma: Annotated[str | None, typer.Option(help="Kernel width: layer, filter, or a number.")] = None,
    scored_batches: Annotated[int | None, typer.Option(min=1, help="Mini-batches that filters are scored on.")] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="Training epochs before pruning; 0 for none.")] = None,
    cycle_epochs: Annotated[int | None, typer.Option(min=0, help="Retraining epochs in each cycle.")] = None,
    final_epochs: Annotated[int | None, typer.Option(min=0, help="Training epochs after the last cycle.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples in a mini-batch.")] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Parts of a mini-batch, to save memory.")] = None,
    precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.")] = None,
    distillation: Annotated[float | None, typer.Option(help="Weight of the unpruned network as a teacher.")] = None,
    plane_every: Plane = None,
    tensorboard: Tensorboard = False,
    weights: Weights = None,
    download: Download = False,
    seed: Seed = 0,
    device: Device = "cpu",
    output: Output = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="Print what would go, and stop.")] = False,
    input_shape: Annotated[
        str | None, typer.Option("--input", help="With --plan: C,H,W of a sample; that of the data if not given.")
    ] = None,
) -> None:
    """Train a network, prune it in cycles, retrain it, and compare before and after.

    The same command on the same output goes on with a run that was interrupted.
    """
    if (model is None) == (own is None):
        raise ValueError("either MODEL or --model must be given, got " + ("both" if model else "none"))
    if model is not None and model not in MODELS:
        raise ValueError(f"MODEL must be one of {', '.join(MODELS)}, got {model!r}")
    if data not in DATASETS:
        raise ValueError(f"--data must be one of {', '.join(DATASETS)}, got {data!r}")
    if input_shape is not None and not only_plan:
        raise ValueError("--input must come with --plan, got no --plan")
    recipe = RECIPES.get((model, data)) or general(own or model, data)
    recipe = _goal(recipe, target, device, cycles, _pairs("--limit", limit or [], int), _shares(percent or []))
    given = {
        "residual": residual,
        "round_to": round_to,
        "min_channels": min_channels,
        "max_ratio": max_ratio,
        "max_drop": None if max_drop is None else max_drop / 100,
        "criterion": criterion,
        "where": where,
        "alpha": alpha,
        "sigma": None if sigma is None else _sigma(sigma),
        "scored_batches": scored_batches,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "precision": precision,
        "distillation": distillation,
        "plane_every": plane_every,
        "weights": weights,
        "baseline": _stage(recipe.baseline, epochs),
        "cycle": _stage(recipe.cycle, cycle_epochs),
        "final": _stage(recipe.final, final_epochs),
    }
    _check_options(criterion or recipe.criterion, {"where": where, "alpha": alpha, "sigma": sigma})
    if where is not None:
        recipe = dataclasses.replace(recipe, scored=None)
    recipe = dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})
    if not 0 < recipe.alpha < float("inf"):
        raise ValueError(f"--alpha must be > 0 and finite, got {alpha}")
    if only_plan:
        _print_plan(recipe, SHAPES[data] if input_shape is None else _shape(input_shape))
        return
    if recipe.target is None and not recipe.limits:
        raise ValueError("--target or --limit must say what is to be left, got neither")
    name = (own or model).replace(":", ".")
    _run(recipe, data_dir, seed, device, output or Path("runs") / f"{name}-{data}", tensorboard, download)


def _run(
    recipe: Recipe, data_dir: Path | None, seed: int, device: str, output: Path, tensorboard: bool, download: bool
) -> None:
    """Run a recipe with its bars, and print the result."""
    from hrel_ext.experiment import CHECKPOINTS, Observer, run

    if download and recipe.weights is None:
        raise ValueError("--download-weights must come with --weights, got no --weights")
    splits = DATASETS[recipe.data](data_dir, seed)
    if (output / CHECKPOINTS).exists():
        console.print(f"going on with the unfinished run in {output}/", markup=False, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bars:
            bar = _Bars(bars)
            observer = Observer(bar.on_stage, bar.on_epoch, bar.on_cycle, bar.scoring)
            if tensorboard:
                from hrel_ext.tracking import TensorBoard

                board = TensorBoard(output, recipe, observer)
                observer = board.observer
            report = run(
                recipe,
                splits,
                seed=seed,
                device=device,
                output=output,
                command=_command(),
                observer=observer,
                download=download,
            )
            if tensorboard:
                board.finish(report)
    except KeyboardInterrupt:
        Console(stderr=True).print(f"hrel: interrupted; the same command goes on from {output}/", soft_wrap=True)
        raise typer.Exit(130) from None
    except ConnectionError as error:
        raise ConnectionError(f"{error}; the same command goes on from {output}/") from None
    if RANK > 0:
        return
    console.print(_results_table(report))
    console.print(f"{report['stopped']}; {report['seconds']['total']:.0f} s on {device}; written to {output}/")
    try:
        from hrel_ext.report.page import write_report
    except ImportError as error:
        text = f"no report.html: it needs {error.name}: pip install 'hrel_ext[report]', then hrel report {output}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)  # markup would swallow the brackets
    else:
        console.print(f"open {write_report(output)}", markup=False, highlight=False, soft_wrap=True)


@app.command("run")
def run_command(
    name: Annotated[str, typer.Argument(help=f"Experiment: {', '.join(EXPERIMENTS)}.")],
    which: Annotated[str, typer.Option("--schedule", help="short, or paper for that of HRel's code.")] = "short",
    limit: Limits = None,
    data_dir: DataDir = None,
    plane_every: Plane = None,
    tensorboard: Tensorboard = False,
    weights: Weights = None,
    download: Download = False,
    seed: Seed = 0,
    device: Device = "cpu",
    output: Output = None,
) -> None:
    """Run an experiment of the paper; `hrel recipes` lists them.

    The same command on the same output goes on with a run that was interrupted.
    """
    recipe = _goal(_experiment(name, which), None, device, None, _pairs("--limit", limit or [], int), {})
    given = {"plane_every": plane_every or recipe.plane_every, "weights": weights or recipe.weights}
    recipe = dataclasses.replace(recipe, **given)
    _run(recipe, data_dir, seed, device, output or Path("runs") / f"{name}-{which}-seed{seed}", tensorboard, download)


@app.command("recipes")
def recipes_command(
    results: Annotated[Path, typer.Option(help="Folder with reports of runs, *.json, for the cost.")] = Path("results"),
) -> None:
    """List the experiments: what they end with, how long they train, and what that took where it was measured."""
    from hrel_ext.pruning import schedule

    contents = [json.loads(path.read_text()) for path in sorted(results.rglob("*.json"))]
    # A file is the report of one run, or {"runs": [report, ...]}, or something else.
    reports = [run for content in contents if isinstance(content, dict) for run in content.get("runs", [content])]
    marked: list[str] = []
    table = Table(box=None, pad_edge=False)
    for column in ("name", "schedule", "filters left", "epochs", "cycles", "cost"):
        number = column in ("epochs", "cycles")
        table.add_column(column, justify="right" if number else "left", no_wrap=column != "filters left")
    for name, schedules in EXPERIMENTS.items():
        network = MODELS[schedules["short"].model]()
        for which, recipe in schedules.items():
            widths = {layer: network.get_submodule(layer).out_channels for layer in recipe.limits}
            cycles = len(schedule(widths, recipe.limits, recipe.shares)) - 1
            epochs = recipe.baseline.epochs + cycles * recipe.cycle.epochs + recipe.final.epochs
            left = " ".join(map(str, dict.fromkeys(recipe.limits.values())))
            table.add_row(name, which, left, str(epochs), str(cycles), _cost(recipe, reports))
            if recipe.weights is not None:
                marked.append(f"{name} {which} starts from {recipe.weights}, see --weights")
    console.print(table)
    for line in marked:
        console.print(f"weights: {line}", highlight=False)


@app.command("plan-cost")
def plan_cost_command(
    name: Annotated[str, typer.Argument(help=f"Experiment: {', '.join(EXPERIMENTS)}, resnet50-imagenet.")],
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs, 1 to 64.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="In place of --gpus: CPU processes, 1 to 64.")] = None,
    which: Annotated[str, typer.Option("--schedule", help="short, or paper for that of HRel's code.")] = "short",
    results: Annotated[Path, typer.Option(help="Folder with what was measured.")] = Path("results"),
) -> None:
    """Estimate what an experiment takes on several GPUs or processes, and say what of it was measured."""
    from hrel_ext.cost_model import cpu_rates, estimate, gpu_rates, workload

    if (gpus is None) == (processes is None):
        raise ValueError("either --gpus or --processes must be given, got " + ("both" if gpus else "none"))
    recipe = _experiment(name.replace("imagenet", "imagefolder"), which)
    rates = (gpu_rates if gpus else cpu_rates)(results, recipe.model)
    most, work = gpus or processes, workload(recipe)
    numbers = sorted({*(n for n in (1, 2, 4, 8, 16, 32, 64) if n < most), most})
    estimates = [estimate(work, rates, ranks) for ranks in numbers]
    table = Table(title=f"ESTIMATE for {name}, {which}, {work.cycles} cycles", pad_edge=False)
    for column in ("GPUs" if gpus else "processes", "scoring", "retraining", "before", "in all", "a GPU sends"):
        table.add_column(column if gpus else column.replace("a GPU", "each"), justify="right", no_wrap=True)
    for each in estimates:
        times = (each.score_s, each.retrain_s, each.baseline_s)
        table.add_row(str(each.ranks), *(_duration(s) for s in (*times, sum(times))), _bytes(round(each.sent_bytes)))
    console.print(table)
    lines = [
        f"all-reduced: {_bytes(estimates[0].step_bytes)} of gradients in a step and {_bytes(estimates[0].table_bytes)} "
        "of scores in a cycle, before pruning",
        f"a step is one mini-batch of {recipe.batch_size} for each of them; before: the epochs before pruning",
        *(f"measured: {line}" for line in rates.measured),
        *(f"assumed: {line}" for line in rates.assumed),
        "assumed: costs fall in equal steps from cycle to cycle; an all-reduce overlaps nothing",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False)


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that hrel prune or save_pruned wrote.")],
    onnx: Annotated[Path | None, typer.Option(metavar="FILE", help="ONNX file to write.")] = None,
    pt2: Annotated[Path | None, typer.Option(metavar="FILE", help="File for torch.export.load to write.")] = None,
    own: Annotated[
        str | None, typer.Option("--model", help="PACKAGE.MODULE:FUNCTION that makes the unpruned network, if yours.")
    ] = None,
) -> None:
    """Write a pruned network for other programs, once the file is seen to give the same outputs."""
    from hrel_ext.pruning import export_onnx, export_pt2, load_pruned
    from hrel_ext.pruning.checkpoint import read_plan

    if onnx is None and pt2 is None:
        raise ValueError("--onnx or --pt2 must be given, got none")
    network = load_pruned(folder, _model_fn(own))
    shape = read_plan(folder)["input_shape"]
    example = torch.zeros(1, *shape, dtype=next(network.parameters()).dtype)
    for export, path in ((export_onnx, onnx), (export_pt2, pt2)):
        if path is not None:
            agreement = export(network, example, path)
            console.print(
                f"{path}: {_bytes(path.stat().st_size)}, input (batch, {', '.join(map(str, shape))}); its outputs "
                f"differ from the network's by at most {agreement.difference:.2g}, allowed {agreement.tolerance:.2g}",
                highlight=False,
                soft_wrap=True,
            )


@app.command("bench-model")
def bench_model_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that hrel prune or save_pruned wrote.")],
    own: Annotated[
        str | None, typer.Option("--model", help="PACKAGE.MODULE:FUNCTION that makes the unpruned network, if yours.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Samples of a forward pass; repeatable; 1 and 100 if not given.")
    ] = None,
) -> None:
    """Compare a pruned network with its unpruned architecture: costs, size, latency, memory."""
    from hrel_ext.pruning import check_device, compare_latency, count, load_pruned, peak_memory
    from hrel_ext.pruning.checkpoint import read_plan, unpruned_model, weights_file_bytes

    check_device(device)
    plan = read_plan(folder)
    after = load_pruned(folder, _model_fn(own))
    dtype = next(after.parameters()).dtype
    torch.manual_seed(0)
    before = unpruned_model(plan, _model_fn(own)).to(dtype)
    models = [model.to(device) for model in (before, after)]
    table = Table(title=f"{own or plan.get('model')} on {device}, threads: {torch.get_num_threads()}")
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right", no_wrap=True)

    def add(what: str, numbers: Sequence[float], show: Callable[[float], str]) -> None:
        change = f"{100 * (numbers[1] / numbers[0] - 1):+.1f} %"
        table.add_row(what, *(show(number) for number in numbers), change)

    inputs = {n: torch.randn(n, *plan["input_shape"], dtype=dtype) for n in batch_size or (1, 100)}
    costs = [count(model, next(iter(inputs.values()))) for model in models]
    add("parameters", [cost.parameters for cost in costs], "{:,}".format)
    add("MACs of a sample", [cost.macs for cost in costs], "{:,}".format)
    add("weights file", [weights_file_bytes(model) for model in models], _bytes)
    for n, batch in inputs.items():
        add(f"memory, batch of {n}", [peak_memory(model, batch) for model in models], _bytes)
    for n, batch in inputs.items():
        with console.status(f"timing batches of {n}"):
            turns = [[turn.median_ms for turn in latencies] for latencies in compare_latency(models, batch)]
        quartiles = [statistics.quantiles(times, n=4) for times in turns]
        add(f"latency, batch of {n}", [middle for _, middle, _ in quartiles], _ms)
        table.add_row("  quartiles", *(f"{_ms(low)[:-3]} to {_ms(high)}" for low, _, high in quartiles), "")
    console.print(table)
    console.print(
        "before: the unpruned architecture with random weights; latency: of 10 turns, which the two networks take "
        "alternately; memory: weights, inputs and what a forward pass allocates at its peak",
        highlight=False,
    )


@app.command("report")
def report_command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder that hrel prune or hrel run wrote.")],
) -> None:
    """Write report.html into the folder of a run: results, plan, pictures, settings; one page that needs no network."""
    try:
        from hrel_ext.report.page import write_report
    except ImportError as error:
        raise ImportError(f"the report needs {error.name}: pip install 'hrel_ext[report,prune]'") from error
    console.print(f"written to {write_report(run_dir)}", markup=False, highlight=False, soft_wrap=True)


@app.command("doctor")
def doctor_command() -> None:
    """Print versions, what runs on this machine, and what does not, with what to do about it."""
    raise typer.Exit(doctor())


def main() -> None:
    """Entry point: a mistake of the user ends in one line and exit status 2, without a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(f"hrel: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


def _experiment(name: str, which: str) -> Recipe:
    if name not in EXPERIMENTS:
        raise ValueError(f"NAME must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    if which not in EXPERIMENTS[name]:
        raise ValueError(f"--schedule must be one of {', '.join(EXPERIMENTS[name])} for {name}, got {which!r}")
    return EXPERIMENTS[name][which]


def _duration(seconds: float) -> str:
    """Three figures: 45 s, 3.21 min, 17.4 h, 12.1 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _cost(recipe: Recipe, reports: Iterable[object]) -> str:
    """The median time of the runs of a recipe among the reports, whatever their seeds."""
    asked = json.loads(json.dumps(dataclasses.asdict(recipe)))  # with lists, as in a report
    seconds: dict[str, list[float]] = {}  # device to those of its runs
    for report in reports:
        told = report.get("recipe") if isinstance(report, dict) else None
        if not told:
            continue
        # The text decides nothing, and a tensor that is scored has a name by `where` and one by `scored`.
        if all(asked.get(key) == value for key, value in told.items() if key not in ("source", "scored")):
            seconds.setdefault(report["device"], []).append(report["seconds"]["total"])
    costs = [f"{statistics.median(runs) / 60:.1f} min on {device}" for device, runs in seconds.items()]
    return ", ".join(costs) or "not measured"


def _print_plan(recipe: Recipe, shape: tuple[int, ...]) -> None:
    """Print what a pruning would remove from a network with random weights, and why the rest stays."""
    from hrel_ext.experiment import RULES
    from hrel_ext.pruning import plan

    rules = {name: getattr(recipe, name) for name in RULES}
    made = plan(make_model(recipe.model), torch.zeros(1, *shape), **rules)
    goal = "limits"
    if recipe.target:
        goal = ", ".join(f"{name}={value}" for name, value in recipe.target.items())
    table = Table(title=f"plan for {recipe.model} on {' x '.join(map(str, shape))}: {goal}")
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
        device = recipe.target["device"]
        console.print("latency {:.2f} > {:.2f} ms, measured on {}".format(*made.latency_ms, device))
    reasons: dict[str, list[str]] = {}
    for layer in made.layers:
        if layer.reason:
            reasons.setdefault(layer.reason, []).append(layer.name)
    for reason, names in reasons.items():
        console.print(f"not pruned, {reason}: {', '.join(names)}", markup=False, highlight=False)


def _short(number: int) -> str:
    """Three figures: 18.4k, 2.36M."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _model_fn(own: str | None) -> Callable[[], torch.nn.Module] | None:
    return None if own is None else partial(make_model, own)


def _bytes(number: int) -> str:
    return f"{_short(number)}B"


def _ms(time_ms: float) -> str:
    return f"{time_ms:.3g} ms" if time_ms < 1000 else f"{time_ms:.0f} ms"


def _target(text: str, device: str) -> dict[str, float | str]:
    ((name, value),) = _pairs("--target", [text], float, "QUANTITY").items()
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
        if len(cycle.filters) > MOST_LAYERS:
            filters = f"{sum(cycle.filters.values())} filters"
        accuracy = f"{100 * cycle.accuracy:.2f} %"
        text = f"cycle {cycle.number}: {filters}; {_short(cycle.cost.macs)} MACs; validation accuracy {accuracy}"
        self._bars.console.print(text)

    def scoring(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        task = self._bars.add_task("scoring the filters", total=len(batches))
        yield from self._bars.track(batches, task_id=task)
        self._bars.remove_task(task)  # or every cycle would leave a full bar on the screen


def _goal(
    recipe: Recipe,
    target: str | None,
    device: str,
    cycles: int | None,
    limits: dict[str, int],
    shares: dict[str, float],
) -> Recipe:
    """The recipe with another end: a budget, or limits beside its own."""
    if target is not None:
        if limits or shares:
            raise ValueError("--target must be given without --limit and --percent, got both")
        return dataclasses.replace(
            recipe, target=_target(target, device), cycles=cycles or recipe.cycles, limits=None, shares=None
        )
    if cycles is not None:
        raise ValueError("--cycles must come with --target, got no --target")
    limits, shares = {**(recipe.limits or {}), **limits}, {**(recipe.shares or {}), **shares}
    return dataclasses.replace(recipe, limits=limits or None, shares=shares or None)


def _stage(stage: Stage, epochs: int | None) -> Stage:
    return stage if epochs is None else dataclasses.replace(stage, epochs=epochs)


def _shares(texts: list[str]) -> dict[str, float]:
    return {name: percent / 100 for name, percent in _pairs("--percent", texts, float).items()}


def _pairs(option: str, texts: list[str], kind: type, what: str = "LAYER") -> dict[str, float]:
    pairs = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            pairs[name] = kind(value)
        except ValueError:
            raise ValueError(
                f"{option} must be {what}={'NUMBER' if kind is float else 'INTEGER'}, got {text!r}"
            ) from None
    return pairs


def _check_options(criterion: str, options: dict[str, object]) -> None:
    """Refuse what is given and the criterion does not have: it would be ignored."""
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return
    from hrel_ext.pruning import CRITERIA

    known = inspect.signature(CRITERIA[criterion]).parameters if criterion in CRITERIA else given
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"--{name} must be left out with the criterion {criterion}, which has none, got {value}")


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
    filters = [(name, n, report["filters"]["after"][name]) for name, n in report["filters"]["before"].items()]
    if len(filters) > MOST_LAYERS:
        filters = [(f"{len(filters)} layers", *(sum(column) for column in list(zip(*filters, strict=True))[1:]))]
    for name, n, left in filters:
        table.add_row(f"filters, {name}", str(n), str(left), f"{100 * (left / n - 1):+.1f} %")
    for key, name in (("parameters", "parameters"), ("macs", "MACs"), ("conv_macs", "MACs, conv layers")):
        table.add_row(name, f"{before[key]:,}", f"{after[key]:,}", f"{100 * (after[key] / before[key] - 1):+.2f} %")
    latency = f"latency, ms (batch {before['latency_batch_size']}, threads: {before['latency_threads']})"
    change = after["latency_ms"] / before["latency_ms"] - 1
    table.add_row(latency, f"{before['latency_ms']:.2f}", f"{after['latency_ms']:.2f}", f"{100 * change:+.1f} %")
    for key, name in (("validation_accuracy", "validation accuracy"), ("test_accuracy", "test accuracy")):
        points = 100 * (after[key] - before[key])
        table.add_row(name, f"{100 * before[key]:.2f} %", f"{100 * after[key]:.2f} %", f"{points:+.2f} points")
    return table


def _command() -> str:
    return shlex.join(["hrel", *sys.argv[1:]]) if os.path.basename(sys.argv[0]) == "hrel" else shlex.join(sys.argv)


if __name__ == "__main__":
    main()
