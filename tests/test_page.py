"""The report page: what a run's files give, what is named as missing, and how it looks in a browser."""
# SPDX-License-Identifier: MIT

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from hrel_ext.cli import app
from hrel_ext.report import InformationPlane
from hrel_ext.report.page import write_report

LONG = "a.layer.with_a_very_long_name.that_no_phone_shows_in_one_line.conv1"
BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)


def cycle(number: int, first: list[int], second: list[int], gone: dict[str, list[int]]) -> dict:
    return {
        "cycle": number,
        "filters": {"conv1": len(first) - len(gone["conv1"]), LONG: len(second) - len(gone[LONG])},
        "validation_accuracy": 0.97 - 0.01 * number,
        "macs": 4_000_000_000 // (1 + number),
        "removed": gone,
        "parameters": 25_557_032 // (1 + number),
        "score_mean": {"conv1": [0.1 * f for f in first], LONG: [0.2 * f for f in second]},
        "relevance_at_first_width": {"conv1": [0.3 * f for f in first], LONG: [0.4 * f for f in second]},
        "widths": {"conv1": 30.0 + number, LONG: [40.0 - number] * len(second)},
        "mini_batches": {"conv1": 6, LONG: 1},
    }


def write_run(folder: Path) -> Path:
    measured = {"macs": 4_000_000_000, "conv_macs": 3_900_000_000, "parameters": 25_557_032, "latency_ms": 12.3}
    measured |= {"latency_batch_size": 100, "latency_threads": 2, "validation_accuracy": 0.98, "test_accuracy": 0.975}
    report = {
        "command": "hrel prune mine --note '<b>&'",
        "recipe": {"model": "mine", "data": "<images>", "criterion": "hrel", "limits": {"conv1": 2}, "shares": None}
        | {name: {"epochs": epochs} for name, epochs in (("baseline", 40), ("cycle", 3), ("final", 20))},
        "seed": 7,
        "device": "cpu",
        "environment": {"processor": "one", "hrel_ext": {"version": "0", "cuda_architectures": []}},
        "samples": {"train": 1000, "validation": 100, "test": 200},
        "filters": {"before": {"conv1": 5, LONG: 4}, "after": {"conv1": 2, LONG: 2}},
        "before": measured,
        "after": measured | {"macs": 1_000_000_000, "parameters": 2_555_703, "test_accuracy": 0.97},
        "cycles": [
            cycle(1, [0, 1, 2, 3, 4], [0, 1, 2, 3], {"conv1": [0], LONG: [1]}),
            cycle(2, [1, 2, 3, 4], [0, 2, 3], {"conv1": [1, 2], LONG: [0]}),
        ],
        "layers": [
            {"name": "conv1", "asked": 0.7, "reason": None},
            {"name": LONG, "asked": 0.5, "reason": None},
            {"name": "stem", "asked": 0.0, "reason": "limits do not name it"},
            {"name": "last", "asked": 0.0, "reason": "limits do not name it"},
        ],
        "stopped": "the limits are reached",
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of a run with all files."""
    folder = write_run(tmp_path_factory.mktemp("whole"))
    save_scores(folder)
    record(folder, "baseline", "cycle 1")
    return write_report(folder)


def record(run_dir, *stages: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    plane = InformationPlane(model, every=1)
    for stage in stages:
        plane.begin(stage)
        for _ in range(4):
            plane.record(torch.randn(12, 3), torch.arange(12) % 2)
    plane.save(run_dir / "plane.safetensors")


def save_scores(run_dir) -> None:
    tables = {"scores/1/conv1/per_batch": torch.rand(6, 5), f"scores/1/{LONG}/per_batch": torch.rand(1, 4)}
    tables |= {"scores/2/conv1/per_batch": torch.rand(6, 4)}
    tables |= {"maps/conv1/0": torch.rand(12, 5, 5), "maps/conv1/4": torch.rand(12, 5, 5)}
    tables |= {"maps/labels": torch.arange(12) % 3, "maps/sigma": torch.tensor(2.0)}
    save_file(tables, run_dir / "scores.safetensors")


def missing(page: str) -> list[str]:
    return re.findall(r"<li>(.*?)</li>", page.partition('<ul id="missing">')[2])


def pictures(page: str) -> list[str]:
    """The SVG of each, dark and light in turns."""
    return [base64.b64decode(image).decode() for image in re.findall(r'base64,([^"]+)"', page)]


def test_a_run_with_all_files_has_all_pictures_and_needs_nothing_else(whole):
    page = whole.read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert captions == [
        "The method: a cycle scores the filters, removes the lowest and retrains; the numbers are those of this run",
        "How a filter gets its score: maps of the most and the least relevant filter of conv1 in one mini-batch",
        "Filters that each layer keeps",
        "Accuracy against the MACs left, cycle by cycle",
        "Accuracy after each cycle, and the costs that are left",
        "Mean score of the filters that are left and of the final survivors, before each cycle",
        "Scores of conv1 before each cycle",
        f"Scores of {LONG} before each cycle",
        "Scores of conv1 in each mini-batch of cycle 1",
        "Kernel width that the filters were scored with, cycle by cycle",
        "Information plane of the whole run, light early and saturated late",
        "Information plane of baseline and of what came after",
        "Kernel widths while the network trained",
        "Scores of conv1 in each mini-batch of cycle 2",
    ]
    assert missing(page) == [
        f"heatmap of {LONG} in cycle 1: it was scored on one mini-batch, or on all together",
        f"heatmap of {LONG} in cycle 2: scores.safetensors has no scores of it",
    ]
    drawn = pictures(page)
    for text in ("40 epochs", "mean over 6 mini-batches", "9 to 4 filters", "2 cycles, then 20 epochs more"):
        assert text in drawn[0]
    assert drawn[2].index("conv1, filter 4") < drawn[2].index("conv1, filter 0")  # the more relevant one on top
    assert "the same, at the kernel width of the first cycle" in drawn[10]
    assert page.count("data:image/svg+xml;base64,") == 2 * len(captions)  # light and dark
    assert not re.search(r'(?:src|srcset|href)="(?!data:)', page) and "<script" not in page
    assert "75.00 % fewer MACs and 90.00 % fewer parameters after 2 cycles" in page
    assert "97.50 % before and 97.00 % after. One run, seed 7; it ended because the limits are reached." in page
    assert "4,000,000,000" in page and "-0.50 points" in page and "1,000 for train" in page
    assert "&lt;images&gt;" in page and "<images>" not in page and "<b>" not in page  # what is not ours is escaped
    assert "hrel prune mine --note" in page and "cuda architectures</th><td>none" in page


def test_the_plan_says_what_was_asked_and_got_and_why_layers_are_whole(run_dir):
    plan = write_report(run_dir).read_text().partition('<table id="plan">')[2].partition("<h2>")[0]
    rows = [re.findall(r">([^<>]+)</t[dh]>", row) for row in plan.split("<tr>")[1:]]
    assert rows == [
        ["layer", "before", "after", "asked", "removed"],
        ["conv1", "5", "2", "70 %", "60 %"],
        [LONG, "4", "2", "50 %", "50 %"],
    ]
    assert re.findall(r"<li>(.*?)</li>", plan) == ["stem, last: limits do not name it"]


def test_what_cannot_be_drawn_is_named_with_its_reason(run_dir):
    page = write_report(run_dir).read_text()
    assert missing(page) == [
        "maps and Gram matrices of two filters: there are no maps in scores.safetensors",
        "heatmaps: there is no scores.safetensors",
        "information planes and kernel widths: there is no plane.safetensors, which a run with --plane writes",
    ]
    record(run_dir, "baseline")
    report = json.loads((run_dir / "report.json").read_text())
    for row in report["cycles"]:
        del row["score_mean"], row["macs"], row["widths"]
    (run_dir / "report.json").write_text(json.dumps(report))
    assert missing(write_report(run_dir).read_text()) == [
        "maps and Gram matrices of two filters: there are no maps in scores.safetensors",
        "accuracy against MACs: report.json has no MACs or no validation accuracy after each cycle",
        "survivors, histograms and heatmaps: report.json has no score_mean of each cycle",
        "information plane before and after: plane.safetensors has one stage only",
    ]


def test_another_criterion_is_not_called_relevance(run_dir):
    save_scores(run_dir)
    report = json.loads((run_dir / "report.json").read_text())
    report["recipe"]["criterion"] = "l1"
    report["cycles"] = report["cycles"][:1]
    (run_dir / "report.json").write_text(json.dumps(report))
    for row in report["cycles"]:
        del row["widths"], row["relevance_at_first_width"]
    (run_dir / "report.json").write_text(json.dumps(report))
    drawn = " ".join(pictures(write_report(run_dir).read_text()))
    assert "score by l1" in drawn and "relevance I(A; Y)" not in drawn and "kernel width" not in drawn


def test_damaged_files_are_named(run_dir, tmp_path_factory):
    (run_dir / "scores.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=re.escape(f"{run_dir}/scores.safetensors must be a whole safetensors file: ")):
        write_report(run_dir)
    (run_dir / "report.json").write_text("{}")
    message = f"{run_dir}/report.json must be the report of a run, which has command, recipe, seed, device, "
    with pytest.raises(ValueError, match=re.escape(message)):
        write_report(run_dir)
    (run_dir / "report.json").write_text("{")
    with pytest.raises(ValueError, match=re.escape(f"{run_dir}/report.json must be JSON: ")):
        write_report(run_dir)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(f'{empty} must hold report.json, which a run writes')}"):
        write_report(empty)
    assert not (run_dir / "report.html").exists()


def test_the_command_writes_the_page(run_dir):
    done = CliRunner().invoke(app, ["report", str(run_dir)])
    assert done.exit_code == 0 and done.output == f"written to {run_dir}/report.html\n"
    assert (run_dir / "report.html").is_file()


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium, of which none is in PATH")
def test_a_browser_shows_all_pictures_and_nothing_is_too_wide_for_a_phone(whole):
    widths = (390, 1100)  # of frames: the smallest window of some browsers is wider than a phone
    look = """<script>addEventListener("load", () => {
        document.querySelectorAll("details").forEach(d => d.open = true);
        const images = [...document.images], broken = images.filter(i => !i.complete || !i.naturalWidth).length;
        const wide = [...document.querySelectorAll("table")].filter(t => t.offsetWidth > t.parentElement.clientWidth);
        const root = document.documentElement, beyond = root.scrollWidth - root.clientWidth;
        document.body.dataset.seen = [innerWidth, images.length, broken, wide.length, beyond].join(" "); })</script>"""
    (whole.parent / "seen.html").write_text(whole.read_text().replace("</body>", f"{look}</body>"))
    frames = "".join(f'<iframe src="seen.html" style="border:0;width:{width}px"></iframe>' for width in widths)
    tell = """<script>onload = () => { document.body.dataset.seen = [...document.querySelectorAll("iframe")].map(
        frame => frame.contentDocument.body.dataset.seen).join(", ") }</script>"""
    (whole.parent / "frames.html").write_text(f"<body>{frames}{tell}</body>")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=9000", "--dump-dom"]
    command += [f"--user-data-dir={whole.parent / 'profile'}", (whole.parent / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = re.search(r'data-seen="([-\d ,]+)"', done.stdout)
    assert seen, done.stdout[:1000] + done.stderr
    assert seen[1] == "390 14 0 0 0, 1100 14 0 0 0"  # width, pictures, broken ones, wide tables, pixels beyond the page
