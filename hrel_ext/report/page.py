"""The report of a run as one HTML page that needs nothing else: no network, no script, pictures inlined."""
# SPDX-License-Identifier: MIT

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hrel_ext._files import write_atomically
from hrel_ext.report import plots
from hrel_ext.report.information_plane import PlaneHistory

REPORT, SCORES, PLANE, PAGE = "report.json", "scores.safetensors", "plane.safetensors", "report.html"
OPEN_LAYERS = 4  # of more layers, the pictures of each one are folded away
WIDE_INCHES = 7  # wider pictures can be moved sideways on a phone, or nobody could read them
NEEDED = ("command", "recipe", "seed", "device", "environment", "samples", "filters", "before", "after", "cycles")

Json = dict[str, Any]


@dataclass(frozen=True)
class _Picture:
    """One figure, light and dark, as data: addresses."""

    caption: str
    light: str
    dark: str
    wide: bool
    folded: bool


def write_report(run_dir: Path) -> Path:
    """Write the page of a run beside its files.

    Args:
        run_dir: folder of a run, with report.json; scores.safetensors and plane.safetensors give more pictures, and
            what cannot be drawn is named on the page with its reason.

    Returns:
        The page, ``run_dir / "report.html"``; one that is there is replaced.

    Raises:
        FileNotFoundError: no report.json, so no finished run.
        ValueError: a report.json or another file that is damaged.
    """
    path = run_dir / REPORT
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} must hold {REPORT}, which a run writes when it is finished")
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: {error}") from error
    lacking = [name for name in NEEDED if not isinstance(report, dict) or name not in report]
    if lacking:
        raise ValueError(f"{path} must be the report of a run, which has {', '.join(lacking)} as well")
    plane = PlaneHistory.load(run_dir / PLANE) if (run_dir / PLANE).is_file() else None
    pictures, missing = _pictures(report, _scores(run_dir / SCORES), plane)
    recipe = report["recipe"]
    template = Environment(autoescape=True).from_string(files("hrel_ext.report").joinpath("page.html.j2").read_text())
    page = template.render(
        title=f"{recipe['model']} on {recipe['data']}, pruned",
        lead=_lead(report),
        summary=list(_summary(report)),
        protocol=(
            "Every epoch that is kept was chosen on the validation split, before and after alike; the test split was "
            "read once for each. Samples: "
            + ", ".join(f"{count:,} for {name}" for name, count in report["samples"].items())
            + ". One multiply-accumulate (MAC) is two FLOPs."
        ),
        plan=list(_plan(report)),
        whole=_whole(report),
        pictures=pictures,
        missing=missing,
        settings=[(name.replace("_", " "), _text(value)) for name, value in recipe.items()],
        environment=list(_flat(report["environment"] | {"device": report["device"], "seed": report["seed"]})),
        command=report["command"],
    )
    write_atomically(run_dir / PAGE, lambda unfinished: unfinished.write_text(page, encoding="utf-8"))
    return run_dir / PAGE


def _lead(report: Json) -> str:
    before, after = report["before"], report["after"]
    macs, parameters = (f"{100 * (1 - after[key] / before[key]):.2f} %" for key in ("macs", "parameters"))
    test = [f"{100 * measured['test_accuracy']:.2f} %" for measured in (before, after)]
    return (
        f"{macs} fewer MACs and {parameters} fewer parameters after {len(report['cycles'])} cycles; test accuracy "
        f"{test[0]} before and {test[1]} after. One run, seed {report['seed']}"
        + (f"; it ended because {report['stopped']}." if report.get("stopped") else ".")
    )


def _summary(report: Json) -> Iterator[tuple[str, str, str, str]]:
    before, after = report["before"], report["after"]
    for key, name in (("parameters", "parameters"), ("macs", "MACs"), ("conv_macs", "MACs, convolutions")):
        yield name, f"{before[key]:,}", f"{after[key]:,}", f"{100 * (after[key] / before[key] - 1):+.2f} %"
    latency = f"latency in ms, batch {before['latency_batch_size']}, threads: {before['latency_threads']}"
    change = after["latency_ms"] / before["latency_ms"] - 1
    yield latency, f"{before['latency_ms']:.2f}", f"{after['latency_ms']:.2f}", f"{100 * change:+.1f} %"
    for key, name in (("validation_accuracy", "validation accuracy"), ("test_accuracy", "test accuracy")):
        points = 100 * (after[key] - before[key])
        yield name, f"{100 * before[key]:.2f} %", f"{100 * after[key]:.2f} %", f"{points:+.2f} points"


def _plan(report: Json) -> Iterator[tuple[str, int, int, str, str]]:
    """Of each layer that was to be pruned: filters before and after, and the shares to go, asked and got."""
    asked = {layer["name"]: _percent(layer["asked"]) for layer in report.get("layers", ())}
    for name, before in report["filters"]["before"].items():
        after = report["filters"]["after"][name]
        yield name, before, after, asked.get(name, ""), _percent(1 - after / before)


def _whole(report: Json) -> dict[str, list[str]]:
    """Why layers keep all their filters, each reason with its layers."""
    reasons: dict[str, list[str]] = {}
    for layer in report.get("layers", ()):
        if layer["reason"]:
            reasons.setdefault(layer["reason"], []).append(layer["name"])
    return reasons


def _scores(path: Path) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} must be a whole safetensors file: {error}") from error


def _pictures(
    report: Json, tensors: Mapping[str, Tensor] | None, history: PlaneHistory | None
) -> tuple[list[_Picture], list[tuple[str, str]]]:
    """All that the files of the run allow, and the name and reason of what they do not."""
    pictures: list[_Picture] = []
    missing: list[tuple[str, str]] = []

    def add(caption: str, plot: Callable[..., Figure], *args: object, folded: bool = False, **kwargs: object) -> None:
        figures = [plot(*args, **kwargs, dark=dark) for dark in (False, True)]
        wide = figures[0].get_figwidth() > WIDE_INCHES
        pictures.append(_Picture(caption, *map(_as_data, figures), wide, folded))

    cycles, before = report["cycles"], report["filters"]["before"]
    criterion = report["recipe"].get("criterion", "hrel")
    quantity = plots.RELEVANCE if criterion == "hrel" else f"score by {criterion}"
    add(
        "The method: a cycle scores the filters, removes the lowest and retrains; the numbers are those of this run",
        *(plots.pipeline, *_steps(report)),
    )
    _add_estimator(report, tensors or {}, add, missing)
    add("Filters that each layer keeps", plots.filters_kept, before, [cycle["filters"] for cycle in cycles])
    points = [(cycle.get("macs"), cycle["validation_accuracy"]) for cycle in cycles]
    if all(macs and accuracy is not None for macs, accuracy in points):
        start = (report["before"]["macs"], report["before"]["validation_accuracy"])
        add(
            "Accuracy against the MACs left, cycle by cycle",
            plots.accuracy_against_macs,
            {criterion: [[start, *points]]},
        )
        rows = [(row["validation_accuracy"], row["macs"], row["parameters"]) for row in (report["before"], *cycles)]
        add("Accuracy after each cycle, and the costs that are left", plots.accuracy_by_cycle, {criterion: [rows]})
    else:
        missing.append(("accuracy against MACs", f"{REPORT} has no MACs or no validation accuracy after each cycle"))
    if all("score_mean" in cycle for cycle in cycles):
        table, survivors = plots.scores_by_cycle(before, cycles)
        of_all = {name: left for name, left in survivors.items() if name in table}
        same = None
        if all(cycle.get("relevance_at_first_width") for cycle in cycles):
            same, _ = plots.scores_by_cycle(before, cycles, "relevance_at_first_width")
        add(
            "Mean score of the filters that are left and of the final survivors, before each cycle",
            *(plots.survivor_curves, table, of_all),
            at_first_width=same,
            quantity=quantity,
        )
        for name, by_cycle in table.items():
            values = {number: list(scores.values()) for number, scores in by_cycle.items()}
            caption, folded = f"Scores of {name} before each cycle", len(table) > OPEN_LAYERS
            add(caption, plots.relevance_histograms, name, values, quantity=quantity, folded=folded)
        _add_heatmaps(tensors, table, quantity, add, missing)
    else:
        missing.append(("survivors, histograms and heatmaps", f"{REPORT} has no score_mean of each cycle"))
    widths = {name: {} for cycle in cycles for name in cycle.get("widths", {})}
    for cycle in cycles:
        for name, width in cycle.get("widths", {}).items():
            widths[name][cycle["cycle"]] = width
    if widths:
        add("Kernel width that the filters were scored with, cycle by cycle", plots.scoring_widths, widths)
    if history is not None:
        add("Information plane of the whole run, light early and saturated late", plots.information_plane, history)
        if len(history.stages) > 1:
            first = next(iter(history.stages))
            add(f"Information plane of {first} and of what came after", plots.before_and_after, history, first)
        else:
            missing.append(("information plane before and after", f"{PLANE} has one stage only"))
        add("Kernel widths while the network trained", plots.width_curves, history)
    else:
        missing.append(
            ("information planes and kernel widths", f"there is no {PLANE}, which a run with --plane writes")
        )
    return pictures, missing


def _add_heatmaps(
    tensors: Mapping[str, Tensor] | None,
    table: Mapping[str, Mapping[int, Mapping[int, float]]],
    quantity: str,
    add: Callable[..., None],
    missing: list[tuple[str, str]],
) -> None:
    """Of the first and the last cycle of each layer; the last ones are folded away."""
    if tensors is None:
        missing.append(("heatmaps", f"there is no {SCORES}"))
        return
    for name, by_cycle in table.items():
        for number in dict.fromkeys((min(by_cycle), max(by_cycle))):
            per_batch = tensors.get(f"scores/{number}/{name}/per_batch")  # (B, F)
            if per_batch is None:
                missing.append((f"heatmap of {name} in cycle {number}", f"{SCORES} has no scores of it"))
            elif len(per_batch) == 1:
                reason = "it was scored on one mini-batch, or on all together"
                missing.append((f"heatmap of {name} in cycle {number}", reason))
            else:
                add(
                    f"Scores of {name} in each mini-batch of cycle {number}",
                    *(plots.relevance_heatmap, name, per_batch),
                    filters=list(by_cycle[number]),
                    quantity=quantity,
                    folded=len(table) > OPEN_LAYERS or number > min(by_cycle),
                )


def _steps(report: Json) -> tuple[list[tuple[str, str]], str]:
    """What the boxes of the pipeline say."""
    recipe, cycles, filters = report["recipe"], report["cycles"], report["filters"]
    epochs = {name: (recipe.get(name) or {}).get("epochs", 0) for name in ("baseline", "cycle", "final")}
    batches = max((max(c.get("mini_batches", {}).values(), default=0) for c in cycles), default=0)
    counts = [sum(filters[side].values()) for side in ("before", "after")]
    steps = [
        ("train", f"{epochs['baseline']} epochs"),
        ("score every filter", f"mean over {batches:,} mini-batches" if batches else "by the criterion"),
        ("remove the lowest", f"{counts[0]:,} to {counts[1]:,} filters"),
        ("retrain", f"{epochs['cycle']} epochs"),
    ]
    return steps, f"{len(cycles)} cycles, then {epochs['final']} epochs more"


def _add_estimator(
    report: Json, tensors: Mapping[str, Tensor], add: Callable[..., None], missing: list[tuple[str, str]]
) -> None:
    """Maps of two filters and how they become a relevance."""
    if "maps/labels" not in tensors:
        missing.append(("maps and Gram matrices of two filters", f"there are no maps in {SCORES}"))
        return
    names = [
        name.split("/", 1)[1].rsplit("/", 1) for name in tensors if name.startswith("maps/") and name.count("/") > 1
    ]
    layer = names[0][0]
    maps = {int(f): tensors[f"maps/{layer}/{f}"] for _, f in names}
    of_first = report["cycles"][0].get("score_mean", {}).get(layer)
    if of_first:  # the most relevant one on top
        maps = dict(sorted(maps.items(), key=lambda item: -of_first[item[0]]))
    add(
        f"How a filter gets its score: maps of the most and the least relevant filter of {layer} in one mini-batch",
        *(plots.estimator, layer, maps, tensors["maps/labels"], tensors["maps/sigma"].item()),
        alpha=report["recipe"].get("alpha", 1.0),
    )


def _as_data(figure: Figure) -> str:
    buffer = io.BytesIO()
    plots.save(figure, buffer, kind="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}, ")
        else:
            yield f"{prefix}{name}".replace("_", " "), _text(value)


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value is None else str(value)
