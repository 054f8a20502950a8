"""Exported files give what the network gives, or are not written; what `hrel export` and `hrel bench-model` print."""
# SPDX-License-Identifier: MIT

import json
import re
import shutil
import sys

import onnx
import onnxruntime
import pytest
import torch
from rich.console import Console
from torch import nn

from hrel_ext import cli
from hrel_ext.pruning import (
    L2Norm,
    Latency,
    compare_latency,
    count,
    export_onnx,
    export_pt2,
    load_pruned,
    peak_memory,
    prune,
    save_pruned,
)
from hrel_ext.pruning import cost as cost_module
from hrel_ext.pruning import export as export_module
from hrel_ext.zoo.models import Shortcut, lenet5

EXPORTERS = {"onnx": export_onnx, "pt2": export_pt2}
IMAGE = torch.full((1, 3, 8, 8), 1234.5)  # values that no file should hold


class Convolution(nn.Module):
    """A convolution, and what ``then`` makes of its output."""

    def __init__(self, then):
        super().__init__()
        torch.manual_seed(6)
        self.conv, self.then = nn.Conv2d(3, 4, 3), then

    def forward(self, x):
        return self.then(self.conv(x))


def run(path, inputs):
    """The outputs of an exported file, by the library it is for."""
    if path.suffix == ".pt2":
        outputs = torch.export.load(path).module()(inputs)
        return list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {"input": inputs.numpy()})]


@pytest.mark.parametrize("kind", EXPORTERS)
def test_a_file_gives_the_outputs_for_any_batch_and_tells_nothing_of_the_machine(kind, rng, tmp_path):
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Shortcut(4), nn.Flatten(), nn.Linear(72, 5))
    model = nn.Sequential(*layers).train()
    model[0].requires_grad_(False)
    path = tmp_path / "new" / f"network.{kind}"
    agreement = EXPORTERS[kind](model, IMAGE, path)
    assert agreement.difference <= 1e-6 < agreement.tolerance < 1e-3
    assert model.training and model[1].training and not model[0].weight.requires_grad
    model.eval()
    for size in (1, 2, 7):
        inputs = torch.randn(size, 3, 8, 8, generator=rng)
        (outputs,) = run(path, inputs)
        assert torch.allclose(outputs, model(inputs), rtol=0, atol=1e-6)
    content = path.read_bytes()
    assert IMAGE.numpy().tobytes()[:16] not in content
    assert b"site-packages" not in content and str(tmp_path).encode() not in content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_inputs_and_outputs_have_names(tmp_path):
    model = Convolution(lambda x: {"maps": x, "more": (x.mean((2, 3)), x.argmax(1))})
    export_onnx(model, IMAGE, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("input", ["batch", 3, 8, 8])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("output_0", ["batch", 4, 6, 6]),
        ("output_1", ["batch", 4]),
        ("output_2", ["batch", 6, 6]),
    ]


@pytest.mark.parametrize("kind", EXPORTERS)
def test_a_file_that_does_not_agree_is_not_written(kind, tmp_path):
    model = Convolution(lambda x: 2 * x if x.shape[0] == 1 else x)  # the tracer follows the branch of several samples
    path = tmp_path / f"network.{kind}"
    path.write_text("of an earlier export")
    message = rf"{path} was not written: for a batch of 1 its outputs must differ from those of the model by at most "
    with pytest.raises(ValueError, match=message + r"0\.00\d+, got [12]\.\d+"):
        EXPORTERS[kind](model, IMAGE, path)
    assert path.read_text() == "of an earlier export" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("then", "message"),
    (
        (
            lambda x: x[: len(x)],
            "model must be one that torch.export can trace for any number of samples, got UserError: Constraints "
            "violated (batch)!",
        ),
        (
            lambda x: x if x.sum() > 0 else -x,
            "can trace for any number of samples, got GuardOnDataDependentSymNode: Could not guard on",
        ),
        (
            lambda x: x.reshape(-1, 7),
            "can trace for any number of samples, got RuntimeError: shape '[-1, 7]' is invalid for input of size 144",
        ),
        (lambda x: (x, 3), "model must return tensors, alone or in tuples, lists and mappings, got 3"),
        (lambda x: x.log(), "model must give finite outputs to be compared, got others for a batch of 1"),
    ),
)
@pytest.mark.parametrize("kind", EXPORTERS)
def test_a_network_that_cannot_be_exported_is_refused(kind, then, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        EXPORTERS[kind](Convolution(then), IMAGE, tmp_path / f"network.{kind}")
    assert not list(tmp_path.iterdir())


def test_what_onnx_lacks_is_named(monkeypatch, tmp_path):
    path = tmp_path / "network.onnx"
    message = "model must be one that ONNX can express, got DispatchError: No ONNX function found for"
    with pytest.raises(ValueError, match=message):
        export_onnx(Convolution(torch.special.bessel_j0), IMAGE, path)
    with pytest.raises(ValueError, match=r"model must be one that onnxruntime can run, got NotImplemented: .*Conv"):
        export_onnx(Convolution(torch.relu).double(), IMAGE.double(), path)
    with pytest.raises(ValueError, match=r"must be float16, float32 or float64 for ONNX, got torch\.bfloat16"):
        export_onnx(Convolution(torch.relu), IMAGE.bfloat16(), path)
    monkeypatch.setattr(export_module, "ONNX_LARGEST_BYTES", 100)
    with pytest.raises(ValueError, match="model must have at most 100 bytes of weights for ONNX, got 448"):
        export_onnx(Convolution(torch.relu), IMAGE, path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"export_onnx needs onnxscript: pip install 'hrel_ext\[export\]'"):
        export_onnx(Convolution(torch.relu), IMAGE, path)
    assert not list(tmp_path.iterdir())


def test_arguments_of_a_pt2_export_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.pt2, or torch\.export\.load does not take the file, got"):
        export_pt2(Convolution(torch.relu), IMAGE, tmp_path / "network.pt")
    with pytest.raises(ValueError, match=r"example_inputs must have a floating-point dtype, got torch\.int64"):
        export_pt2(Convolution(torch.relu), IMAGE.long(), tmp_path / "network.pt2")


class Scaled(nn.Module):
    """Two maps of the size of the input at a time."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1000))

    def forward(self, x):
        x = x * self.scale
        x = x + 1
        return x * 2  # the first one is free by now


SCALED_BYTES = 4 * (1000 + 50 * 1000 + 2 * 50 * 1000)  # the scale, the inputs, two maps


def test_peak_memory_is_counted_by_hand():
    peak = peak_memory(Scaled(), torch.ones(50, 1000))
    assert SCALED_BYTES <= peak < SCALED_BYTES + 100  # with the numbers 1 and 2
    network = lenet5().train()
    batch = torch.randn(20, 1, 28, 28)
    peak = peak_memory(network, batch)
    least = 4 * (1_071_880 + batch.numel() + 20 * 20 * 24 * 24)  # weights, inputs, the largest map
    assert peak == peak_memory(network, batch) and least <= peak < least + 8 * 20 * 20 * 24 * 24
    assert network.training and not any(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.cuda
def test_peak_memory_on_a_gpu_is_that_in_blocks():
    peak = peak_memory(Scaled().cuda(), torch.ones(50, 1000))
    assert SCALED_BYTES <= peak < SCALED_BYTES + 4 * 512


def test_networks_take_turns_on_the_clock(monkeypatch):
    calls = []

    def clock(model, inputs, *, runs, warmup):
        calls.append((model, runs, warmup))
        return Latency({"slow": 500.0, "middle": 50.0, "fast": 0.01}[model], len(inputs), runs, 1, "cpu")

    monkeypatch.setattr(cost_module, "measure_latency", clock)
    latencies = compare_latency(["slow", "middle", "fast"], torch.zeros(3, 1), turns=2)
    turn = [("slow", 1, 1), ("middle", 4, 1), ("fast", 50, 1)]  # as often as fits 200 ms
    assert calls == [("slow", 1, 1), ("middle", 1, 1), ("fast", 1, 1), *turn, *turn]
    assert [[latency.median_ms for latency in of_one] for of_one in latencies] == [[500.0] * 2, [50.0] * 2, [0.01] * 2]


@pytest.fixture
def hrel(monkeypatch, capsys):
    """The command line in this process: exit status, what it printed, and what it complained of."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hrel", *map(str, arguments)])
        monkeypatch.setattr(cli, "console", Console(width=80))
        with pytest.raises(SystemExit) as exit:
            cli.main()
        said = capsys.readouterr()
        return exit.value.code, said.out, said.err

    return call


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with LeNet-5, pruned."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(8)
    model, image = lenet5(), torch.zeros(1, 1, 28, 28)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)  # biases of 0 would be left out of an ONNX file
    batches = [(torch.randn(4, 1, 28, 28), torch.arange(4))]
    result = prune(model, batches, image, target={"macs": 0.3}, criterion=L2Norm())
    save_pruned(folder, model, result, input_shape=(1, 28, 28), model_name="lenet5")
    return folder


def test_export_writes_files_that_other_programs_run(hrel, saved, tmp_path):
    status, out, _ = hrel("export", saved, "--onnx", tmp_path / "a.onnx", "--pt2", tmp_path / "a.pt2")
    assert status == 0
    for line, path in zip(out.splitlines(), (tmp_path / "a.onnx", tmp_path / "a.pt2"), strict=True):
        assert re.fullmatch(
            rf"{path}: \d\.\d+MB, input \(batch, 1, 28, 28\); its outputs differ from the network's by at most \S+, "
            r"allowed \S+",
            line,
        )
    model, images = load_pruned(saved), torch.randn(3, 1, 28, 28)
    weights = sum(torch.Size(weight.dims).numel() for weight in onnx.load(tmp_path / "a.onnx").graph.initializer)
    assert weights == pytest.approx(count(model, images).parameters, abs=10)  # with a shape or two
    for path in (tmp_path / "a.onnx", tmp_path / "a.pt2"):
        assert torch.allclose(run(path, images)[0], model(images), rtol=0, atol=1e-4)


def test_bench_model_compares_before_and_after(hrel, saved, monkeypatch):
    monkeypatch.setattr(cost_module, "TURN_MS", 1.0)
    model = ("--model", "hrel_ext.zoo.models:lenet5")
    for arguments, batches in (((), (1, 100)), ((*model, "--batch-size", 3), (3,))):
        status, out, _ = hrel("bench-model", saved, *arguments)
        assert status == 0 and max(map(len, out.splitlines())) <= 80
        after = count(load_pruned(saved), torch.zeros(1, 1, 28, 28))
        assert re.search(rf"parameters +│ +1,071,880 │ +{after.parameters:,} │ +-", out)
        assert re.search(rf"MACs of a sample +│ +2,933,000 │ +{after.macs:,} │ +-(69|7\d)\.", out)
        size = (saved / "model.safetensors").stat().st_size
        assert f"{size / 1e6:.3g}MB" in out and "the unpruned architecture with random weights" in " ".join(out.split())
        assert re.findall(r"latency, batch of (\d+)", out) == re.findall(r"memory, batch of (\d+)", out)
        assert re.findall(r"latency, batch of (\d+)", out) == [str(size) for size in batches]
        assert len(re.findall(r"quartiles +│ +[\d.]+ to [\d.]+ ms │ +[\d.]+ to [\d.]+ ms", out)) == len(batches)


def test_mistakes_end_in_one_line_and_status_2(hrel, saved, tmp_path):
    for arguments, message in (
        (("export", saved), "--onnx or --pt2 must be given, got none"),
        (("export", tmp_path, "--pt2", tmp_path / "a.pt2"), f"No such file or directory: '{tmp_path / 'plan.json'}'"),
        (("export", saved, "--pt2", tmp_path / "a.onnx"), "path must end in .pt2, or torch.export.load does not take"),
        (("export", saved, "--pt2", "a.pt2", "--model", "json:loads"), "model must name a function without arguments"),
        (("bench-model", saved, "--device", "tpu"), "device must be cpu or cuda, got 'tpu'"),
    ):
        status, out, err = hrel(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1) and message in err
    plan = json.loads((saved / "plan.json").read_text())
    shutil.copy(saved / "model.safetensors", tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "model": "mine"}))
    status, _, err = hrel("bench-model", tmp_path)
    assert status == 2 and "model_fn must be given unless the model is one of" in err
