"""What the benchmarks compare with, the shapes they time, the floor they report and the pages they write."""
# SPDX-License-Identifier: MIT

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import baselines
import bench_layers
import criteria_study
import criteria_tables
import latency_budget
import plots
import protocol
import pytest
import report
import torch
import torchvision
from torch import nn

from hrel_ext import testing
from hrel_ext.pruning import Latency, count
from hrel_ext.pruning import cost as cost_module
from hrel_ext.testing import CASES, RESNET50, RESNET56, VGG16, Layer, oracle

COMPARED = ("n1", "n2", "n33", "n100", "f7", "d1025", "c1", "c37", "c100", "sliced2d", "rectified", "dead", "offset")


@pytest.mark.parametrize("alpha", (0.9, 1, 1.01, 1.5, 2))
@pytest.mark.parametrize("case", [case for case in CASES if case.name in COMPARED], ids=str)
def test_strong_baseline_agrees_with_the_oracle(case, alpha):
    acts, labels = case.make()
    sigma = case.sigma(acts)
    relevance = baselines.relevance(acts, labels, sigma=sigma, alpha=alpha)
    assert relevance.dtype == case.dtype
    # Plain float32 on Gram matrices near rank one and eigenvalues near 0: the baseline is fast, not accurate.
    tolerance = 1e-9 if case.dtype == torch.float64 else 2e-3
    torch.testing.assert_close(relevance.double(), oracle(acts, labels, sigma, alpha).relevance, rtol=0, atol=tolerance)


def test_strong_baseline_takes_one_width_classes_of_any_size_and_half_precision(rng):
    acts = torch.randn(70, 3, 5, generator=rng)
    labels = torch.repeat_interleave(torch.tensor([7, 3, 900, 4]), torch.tensor([1, 40, 9, 20]))
    labels = labels[torch.randperm(70, generator=rng)]
    for maps in (acts, acts.bfloat16(), acts.half()):
        relevance = baselines.relevance(maps, labels, sigma=2.0)
        assert relevance.dtype == torch.float32
        exact = oracle(maps, labels, 2.0, 1.01).relevance
        torch.testing.assert_close(relevance.double(), exact, rtol=0, atol=1e-4)


def test_strong_baseline_uses_the_solver_it_is_given(rng):
    acts, labels = torch.randn(12, 2, 3, generator=rng), torch.arange(12) % 3
    shapes = []

    def solver(matrices):
        shapes.append(tuple(matrices.shape))
        return torch.linalg.eigvalsh(matrices)

    baselines.relevance(acts, labels, sigma=2.0, eigvalsh=solver)
    assert sorted(shapes) == [(2, 12, 12), (6, 4, 4)]  # the Gram matrices, and three class blocks of each


def conv_outputs(network: nn.Module, image: int) -> Counter:
    """Shapes (F, H, W) of the outputs of all convolutions, without computing any."""
    shapes: Counter = Counter()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: shapes.update([tuple(output.shape[1:])]))
    network.eval()(torch.empty(1, 3, image, image, device="meta"))
    return shapes


def table(layers: tuple[Layer, ...]) -> dict:
    return {(layer.num_filters, *layer.map_shape): layer.count for layer in layers}


def test_layer_tables_are_those_of_the_networks():
    with torch.device("meta"):
        resnet50 = torchvision.models.resnet50(weights=None)
        vgg16 = torchvision.models.vgg16(weights=None).features
    assert table(RESNET50) == conv_outputs(resnet50, 224)
    assert table(VGG16) == conv_outputs(vgg16, 32)
    assert [sum(layer.count for layer in layers) for layers in (VGG16, RESNET50, RESNET56)] == [13, 53, 55]
    # ResNet-56 of He et al. for 32x32 images: one convolution, then three stages of nine blocks of two.
    assert table(RESNET56) == {(16, 32, 32): 1 + 18, (32, 16, 16): 18, (64, 8, 8): 18}


def test_floor_by_hand():
    ceilings = {"bandwidth_bytes_per_s": 1e6, "fma_flops_per_s": 1e9}
    floor = bench_layers.floor((3, 5, 2, 2), ceilings)
    assert floor["bytes"] == 4 * 3 * 5 * 4 and floor["flops"] == 5 * (3 * 4 * 4 + 4 / 3 * 27)
    assert floor["floor_bytes_ms"] == pytest.approx(0.24) and floor["floor_flops_ms"] == pytest.approx(4.2e-4)
    assert floor["floor_ms"] == floor["floor_bytes_ms"]
    # VGG-16 on an H100, at the 3.35 TB/s and 67 TFLOP/s of its data sheet.
    ceilings = {"bandwidth_bytes_per_s": 3.35e12, "fma_flops_per_s": 67e12}
    shapes = [((layer.num_samples, layer.num_filters, *layer.map_shape), layer.count) for layer in VGG16]
    assert sum(count * bench_layers.floor(shape, ceilings)["floor_ms"] for shape, count in shapes) == pytest.approx(
        0.244, abs=0.001
    )


def test_a_baseline_that_is_too_slow_is_scaled_up_from_a_few_filters():
    clock = bench_layers.Clock("cpu")
    acts = torch.zeros(2, 4 * bench_layers.FEW_FILTERS)
    seen = []
    effort = bench_layers.Effort(0.0, 0.0, 3, 0, 0)
    timing = bench_layers.time_baseline(clock, lambda maps: seen.append(maps.shape[1]), acts, effort)
    assert timing.estimated_from_filters == bench_layers.FEW_FILTERS and set(seen) == {bench_layers.FEW_FILTERS}
    timing = bench_layers.time_baseline(
        clock, lambda maps: seen.append(maps.shape[1]), acts, bench_layers.Effort(0.0, 60.0, 3, 0, 0)
    )
    assert timing.estimated_from_filters is None and timing.rounds == 3 and seen[-1] == acts.shape[1]


def test_a_wrong_result_is_recorded_and_not_timed(monkeypatch):
    def wrong(acts, labels, **options):
        return torch.full((acts.shape[1],), 3.0)

    monkeypatch.setattr(bench_layers.hrel_ext, "relevance", wrong)
    ceilings = {"bandwidth_bytes_per_s": 1e10, "fma_flops_per_s": 1e10}
    layer = bench_layers.shrink(VGG16[0])
    row = bench_layers.measure(bench_layers.Clock("cpu"), "vgg16", layer, "cpu", ceilings, bench_layers.SMALL)
    assert not row["right"] and row["error_bits"] > 0.1 and "op" not in row
    assert bench_layers.totals([row], [("vgg16", layer)]) == []


def test_totals_count_every_layer_and_need_all_of_them():
    layers = [("vgg16", layer) for layer in VGG16]

    def row(layer, ms):
        timing = {"median_ms": ms, "interquartile_ms": 0.0, "rounds": 1, "estimated_from_filters": None}
        shape = [layer.num_samples, layer.num_filters, *layer.map_shape]
        names = {name: dict(timing, median_ms=ms * scale) for name, scale in (("op", 1), ("public", 2), ("strong", 20))}
        names["reference"] = dict(timing, median_ms=100 * ms, estimated_from_filters=32)
        return {"network": "vgg16", "shape": shape, "layers_of_this_shape": layer.count, "floor_ms": ms / 4, **names}

    rows = [row(layer, 0.1) for layer in VGG16]
    assert bench_layers.totals(rows[:-1], layers) == []
    (total,) = bench_layers.totals(rows, layers)
    assert (
        total["layers"] == 13 and total["op_ms"] == pytest.approx(1.3) and total["ratio_to_floor"] == pytest.approx(4)
    )
    assert total["over_reference"] == pytest.approx(50) and total["op_over_strong"] == pytest.approx(20)
    assert total["reference_estimated"] and not total["strong_estimated"] and "strong_cupy_ms" not in total
    assert report.target(total) == "op 1.6 ms: met; 40x over naive: met"
    assert report.target(dict(total, op_ms=1.7)) == "op 1.6 ms: missed; 40x over naive: met"


def test_most_important_layers_come_first():
    plan = bench_layers.plan(small=False)
    assert [layer for _, layer in plan[:5]] == list(VGG16) and plan[5][0] == "resnet50"
    assert {layer.num_samples for _, layer in plan} == {128, 100, 64, 256}
    small = bench_layers.plan(small=True)
    assert [layer.name for _, layer in small] == [layer.name for _, layer in plan]
    assert max(math.prod((layer.num_samples, layer.num_filters, *layer.map_shape)) for _, layer in small) <= 2**13


def test_csv_of_the_profiler_becomes_one_row_per_kernel():
    head = '"ID","Kernel Name","Block Size","Grid Size","Metric Name","Metric Unit","Metric Value","Rule Name"'
    kernel = '"void hrel::cuda::relevance<float, 128>(int)","(128, 1, 1)","(512, 1, 1)"'
    lines = [
        "==PROF== Connected to process 7",
        head,
        f'"0",{kernel},"Duration","us","98.5",""',
        f'"0",{kernel},"Registers Per Thread","register/thread","255",""',
        f'"0",{kernel},"smsp__average_warps_issue_stalled_wait_per_issue_active.ratio","","1.31",""',
        f'"0",{kernel},"","","","SOLBottleneck"',
        f'"1",{kernel},"Duration","us","1,201",""',
        "==PROF== Disconnected from process 7",
    ]
    first, second = protocol.profile_rows(lines)
    assert first["kernel"].startswith("void hrel::cuda::relevance") and first["grid"] == "(512, 1, 1)"
    assert first["metrics"] == {
        "Duration": "98.5 us",
        "Registers Per Thread": "255 register/thread",
        "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio": "1.31",
    }
    assert second["metrics"] == {"Duration": "1,201 us"}
    assert protocol.profile_rows(["==ERROR== ERR_NVGPUCTRPERM"]) == []
    page = "\n".join(report.profile_table({"kernels": [first, second]}, "../"))
    assert "`void hrel::cuda::relevance<float, 128>`" in page and "98.5 us" in page


# The comparison of criteria


@pytest.mark.parametrize(
    ("network", "rows"), [("lenet5", ("hrel, pool", "hrank, relu")), ("resnet20", ("hrel_set, relu", "bn_scale"))]
)
def test_criteria_study_gives_every_criterion_the_same_budget(network, rows, tmp_path, monkeypatch):
    study = criteria_study.quick(criteria_study.STUDIES[network])
    rows = (*rows, "random")
    study = replace(study, draws=2, criteria={row: study.criteria[row] for row in rows})
    tested, evaluate = [], criteria_study.evaluate

    def watch(model, batches):
        tested.append(torch.equal(batches._split.images, test_images))
        return evaluate(model, batches)

    test_images = criteria_study.load(study, None, 0).test.images
    monkeypatch.setattr(criteria_study, "evaluate", watch)
    report = criteria_study.run(study, None, tmp_path / "criteria.json", "a command")
    made = [(cell["criterion"], cell["draw"]) for cell in report["cells"]]
    assert made == [*((row, 0) for row in rows), ("random", 1)] and report["planned_cells"] == len(made)
    assert sum(tested) == 1 + len(made)  # the test split, once for each network
    (base,) = report["bases"]
    assert len({cell["macs"] for cell in report["cells"]}) == 1
    assert report["cells"][0]["macs"] <= 0.5 * base["macs"]
    assert json.loads((tmp_path / "criteria.json").read_text()) == json.loads(json.dumps(report))


def test_criteria_study_goes_on_where_it_was(tmp_path):
    study, output = criteria_study.quick(criteria_study.STUDIES["lenet5"]), tmp_path / "criteria.json"
    study = replace(study, criteria={row: study.criteria[row] for row in ("taylor, relu", "l1", "random")})
    whole = criteria_study.run(study, None, output, "a command")
    output.write_text(json.dumps(dict(whole, cells=whole["cells"][:1])))  # as if it had been stopped
    resumed = criteria_study.run(study, None, output, "a command")
    assert resumed["cells"][0] == whole["cells"][0] and resumed["bases"] == whole["bases"]
    without_seconds = [[dict(cell, seconds=0) for cell in r["cells"]] for r in (resumed, whole)]
    assert without_seconds[0] == without_seconds[1]
    with pytest.raises(ValueError, match="must hold cells of the same settings, got others"):
        criteria_study.run(replace(study, train=80), None, output, "a command")
    output.write_text(json.dumps(dict(whole, cells=[], bases=[dict(whole["bases"][0], validation_accuracy=0.123)])))
    with pytest.raises(ValueError, match=r"base network of seed 0 must come out as before.* of 0\.123, got"):
        criteria_study.run(study, None, output, "a command")


def made_up_study(drops):
    """A study of three seeds in which the criteria lose so many points in each."""
    settings = {"seeds": [0, 1, 2], "draws": 1, "criteria": dict.fromkeys(drops), "budgets": {"2, 3": {"limits": {}}}}
    settings |= {"model": "lenet5", "data": "mnist", "train": 9, "validation": 8, "test": 7, "score_batches": 5}
    settings |= {"batch_size": 100, "base": {"epochs": 3}, "retraining": {"epochs": 2}}
    bases = [{"seed": s, "test_accuracy": 0.9, "validation_accuracy": 0.95, "seconds": 60.0} for s in range(3)]
    cells = [
        {"seed": seed, "budget": "2, 3", "criterion": row, "draw": 0, "seconds": {"retrain": 30.0}}
        | {"test_accuracy": 0.9 - lost / 100, "validation_accuracy_before_retraining": 0.25}
        for row, values in drops.items()
        for seed, lost in enumerate(values)
    ]
    environment = {"threads": 1, "processor": "a processor", "torch": "2"}
    whole = {"settings": settings, "bases": bases, "cells": cells, "environment": environment, "command": "a command"}
    return whole | {"planned_cells": 3 * len(drops)}


def test_criteria_are_told_apart_only_where_all_seeds_agree(tmp_path):
    study = made_up_study({"good": [1, 2, 3], "as good": [1, 4, 2], "bad": [9, 8, 10], "random": [5, 6, 3]})
    text = criteria_tables.verdict(study, "2, 3")
    assert "lie between 2.00 (good) and 9.00 points (bad), random filters at 4.67; the seeds" in text
    assert "2.00 points apart (median). Better than random in every seed: as good; worse in every seed: bad." in text
    assert text.endswith("The ranges of 1 of the 2 others meet that of the best.")
    page = "\n".join(criteria_tables.section({"a link": study}, "plots/"))
    assert "| `as good` | 2.33 (1.00 to 4.00) | 70.00 (70.00 to 70.00) |" in page and "Unfinished" not in page
    assert "9 minutes on 1 thread" in page and "90.00 % (90.00 to 90.00)" in page
    study["cells"].pop()
    page = "\n".join(criteria_tables.section({"a link": study}, "plots/"))
    assert "**Unfinished: 11 of 12 networks.**" in page and "| `random` | 5.50 (5.00 to 6.00, 2 of 3 seeds) |" in page
    assert "- 2, 3: not finished." in page
    text = plots.draw_criteria([study], tmp_path).read_text()
    assert all(label in text for label in ("test accuracy lost, points", "as good", "2, 3 filters", "lenet5, mnist"))


def test_quick_criteria_do_not_reach_the_page(tmp_path):
    copy_of_results(tmp_path)
    study = made_up_study({"good": [1, 2, 3], "random": [1, 2, 3]})
    study["settings"]["data"] = "digits"
    (tmp_path / criteria_tables.STUDIES[0]).write_text(json.dumps(study))
    with pytest.raises(ValueError, match="must come from a whole run, got one with --quick"):
        report.render(tmp_path)


# Pages


def test_pages_are_what_the_json_renders_to(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report.py", "--check"])
    report.main()


def copy_of_results(folder, *, gpu=False):
    names = ["README.md", "docs/index.md", "docs/results.md", *report.PRUNING, report.CPU]
    names += [name for name in criteria_tables.STUDIES if (report.ROOT / name).exists()]
    if gpu:
        of_gpu = (report.GPU_LAYERS, report.GPU_STEPS, report.GPU_PROFILE, report.GPU_ESTIMATES)
        names += [name for name in of_gpu if (report.ROOT / name).exists()]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(report.ROOT / name, folder / name)
    return folder


def test_check_finds_a_number_that_was_typed_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", copy_of_results(tmp_path, gpu=True))
    monkeypatch.setattr("sys.argv", ["report.py", "--check"])
    report.main()
    page = tmp_path / "docs/results.md"
    page.write_text(page.read_text().replace("Medians", "Means"))
    with pytest.raises(SystemExit, match=r"docs/results\.md is not what the JSON renders to"):
        report.main()


def test_page_tells_of_gpu_results_or_that_there_are_none(tmp_path):
    page = copy_of_results(tmp_path) / "docs/results.md"
    assert "No GPU result has been measured yet" in report.render(tmp_path)[page]
    timing = {"median_ms": 0.0985, "interquartile_ms": 0.002, "rounds": 9, "estimated_from_filters": None}
    row = {
        **{"network": "vgg16", "layer": "vgg16 conv1-2", "shape": [128, 64, 32, 32], "layers_of_this_shape": 2},
        **{"right": True, "error_bits": 2e-6, "ratio_to_floor": 5.25, "op_host_ms": 0.0301},
        **{"op": timing, "public": timing, "reference_error_bits": None},
        **{"strong": dict(timing, median_ms=1234.5, estimated_from_filters=32), "reference_absent": "OutOfMemoryError"},
    }
    wrong = {**row, "layer": "vgg16 conv3-4", "right": False, "error_bits": None}
    environment = protocol.environment("cpu") | {
        **{"device": "cuda", "driver": "580.1", "gpu": {"name": "NVIDIA H100", "capability": "9.0"}, "commit": "abc"},
    }
    ceilings = {"bandwidth_bytes_per_s": 3e12, "fma_flops_per_s": 5e13, "tf32_flops_per_s": 4e14}
    results = {
        **{"environment": environment, "small": False, "alpha": 1.01, "classes": 10, "dtype": "float32"},
        **{"ceilings": ceilings, "complete": False, "rows": [row, wrong], "totals": []},
    }
    step = {"status": "failed", "reason": None, "seconds": 3.2, "last_line": "==== 1 failed | 2 passed ===="}
    (tmp_path / "results/gpu").mkdir()
    (tmp_path / report.GPU_LAYERS).write_text(json.dumps(results))
    (tmp_path / report.GPU_STEPS).write_text(json.dumps({"environment": environment, "steps": {"tests": step}}))
    text = report.render(tmp_path)[page]
    assert "NVIDIA H100 (sm_90), driver 580.1" in text and "copy 3.00 TB/s" in text and "its last layer" in text
    assert "| vgg16 conv1-2 | 128 x 64 x 32 x 32 | 2 | 0.0985 ± 0.001 | 5.2 | 0.0301 |" in text
    assert "| ~1234 ± 0.001 | 2e-06 (nan) |" in text
    assert "| vgg16 conv3-4 | 128 x 64 x 32 x 32 | 2 | **wrong** |" in text
    assert "| tests | failed | 3 | 1 failed \\| 2 passed |" in text
    (tmp_path / report.GPU_LAYERS).write_text(json.dumps(dict(results, small=True)))
    with pytest.raises(ValueError, match="must come from a whole run on a GPU"):
        report.render(tmp_path)


def test_tolerances_of_the_benchmark_are_those_of_the_tests():
    layer = bench_layers.shrink(VGG16[0])
    ceilings = {"bandwidth_bytes_per_s": 1e10, "fma_flops_per_s": 1e10}
    row = bench_layers.measure(bench_layers.Clock("cpu"), "vgg16", layer, "cpu", ceilings, bench_layers.SMALL)
    assert row["right"] and row["tolerance_bits"] == 2 * testing.tolerance_bits(torch.float32, layer.num_samples, 1.01)
    assert row["over_reference"] == row["reference"]["median_ms"] / row["public"]["median_ms"]


def test_a_latency_budget_is_measured_again_on_what_was_saved(monkeypatch):
    """With a clock that counts MACs: the share that is asked, met by the plan, and that of the loaded network."""

    def clock(model, inputs, **_):
        return Latency(count(model, inputs).macs / 1e6, len(inputs), 1, 1, "cpu")

    def fresh_process(command, **_):
        assert command[2] == "--again"
        return SimpleNamespace(stdout=json.dumps(latency_budget.again(command[3], int(command[4]))))

    monkeypatch.setattr(cost_module, "measure_latency", clock)
    monkeypatch.setattr(latency_budget.subprocess, "run", fresh_process)
    row = latency_budget.measure("resnet20", 2, 0.6)
    assert row["asked_share"] == pytest.approx(0.6)
    assert row["again"]["share"] == pytest.approx([row["macs_left"]] * 3)
    assert row["planned"]["share"] == pytest.approx(row["macs_left"])
    assert row["off_percent"] == pytest.approx(100 * (row["macs_left"] / 0.6 - 1)) and abs(row["off_percent"]) < 10
