"""The recorder of the information plane: closed forms, what it leaves alone, its file, and how it goes on."""
# SPDX-License-Identifier: MIT

import doctest
import json
import math
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

import hrel_ext
from hrel_ext.report import DegenerateInputWarning, InformationPlane, PlaneHistory, information_plane

ROUNDING = 1e-4  # bits, of a sum of three float32 entropies


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(information_plane).failed == 0


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    )


def mini_batch(rng: torch.Generator, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(size) % 3
    return torch.randn(size, 1, 6, 6, generator=rng) + labels[:, None, None, None], labels


def test_a_constant_layer_has_no_information():
    linear = nn.Linear(5, 4)
    nn.init.zeros_(linear.weight)
    plane = InformationPlane(nn.Sequential(linear))
    plane.record(torch.randn(30, 5), torch.arange(30) % 3)
    history = plane.history
    assert history.information.abs().max() < ROUNDING and history.layer_entropy.abs().max() < ROUNDING
    assert history.label_entropy.item() == pytest.approx(math.log2(3), abs=ROUNDING)


def test_a_layer_that_is_the_label_knows_it_and_all_of_an_input_that_is_no_more():
    labels = torch.tensor([0] * 8 + [1] * 4 + [2] * 4)
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    nn.init.eye_(model[0].weight)
    plane = InformationPlane(model, input_sigma=0.1)
    plane.record(one_hot(labels).float(), labels)
    expected = 0.5 * 1 + 2 * 0.25 * 2  # S(Y) of shares 1/2, 1/4, 1/4 for alpha = 1, and nearly so for 1.01
    assert plane.history.information.flatten().tolist() == pytest.approx([expected, expected], abs=5e-3)
    assert plane.history.label_entropy.item() == pytest.approx(expected, abs=5e-3)


def test_the_numbers_are_those_of_whole_gram_matrices_in_float64(rng):
    model, (inputs, labels) = small_network(), mini_batch(rng)
    plane = InformationPlane(model, layers={"bn": "1", "out": "5"}, input_sigma="mean", alpha=1.3)
    assert plane.record(inputs, labels)
    model.eval()
    maps = model[:2](inputs).detach(), model(inputs).detach()
    x = inputs.flatten(1).double()
    K_x = hrel_ext.gram(x, sigma="mean")
    K_y = (labels[:, None] == labels).double()
    for at, layer in enumerate(maps):
        width = hrel_ext.kernel_width(layer, labels).item()
        K_t = hrel_ext.gram(layer.flatten(1).double(), sigma=width)
        expected = [hrel_ext.mutual_information(K_t, other, alpha=1.3).item() for other in (K_x, K_y)]
        assert plane.history.information[0, at].tolist() == pytest.approx(expected, abs=ROUNDING)
        assert plane.history.widths[0, at].item() == pytest.approx(width, rel=1e-6)
    assert plane.history.input_widths.item() == pytest.approx(hrel_ext.mean_distance(x).item(), rel=1e-6)


def test_a_large_offset_costs_no_digits(rng):
    labels = torch.arange(40) % 4
    x = torch.randn(40, 700, generator=rng) + labels[:, None]
    planes = []
    for offset in (0.0, 1e3):
        plane = InformationPlane(nn.Sequential(nn.Identity()), layers=["0"])
        plane.record((x + offset).double(), labels)
        planes.append(plane.history.information)
    torch.testing.assert_close(planes[0], planes[1], rtol=0, atol=ROUNDING)


def test_widths_are_averaged_over_the_recorded_mini_batches(rng):
    model = nn.Sequential(nn.Identity())
    plane = InformationPlane(model, layers=["0"], every=1)
    found, inputs = [], []
    for scale in (1.0, 1.5):
        batch, labels = mini_batch(rng)
        plane.record(scale * batch, labels)
        found.append(hrel_ext.kernel_width(scale * batch, labels).item())
        inputs.append(hrel_ext.median_distance(scale * batch.flatten(1)).item())
    assert plane.history.widths[:, 0].tolist() == pytest.approx([found[0], 0.9 * found[0] + 0.1 * found[1]], rel=1e-5)
    assert plane.history.input_widths.tolist() == pytest.approx(
        [inputs[0], 0.9 * inputs[0] + 0.1 * inputs[1]], rel=1e-5
    )


def test_a_width_far_below_the_distances_of_the_inputs_is_warned_of_once(rng):
    labels = torch.arange(40) % 4
    inputs = torch.randn(40, 3 * 32 * 32, generator=rng)  # normalised pixels: distances of about 78
    model = nn.Sequential(nn.Linear(3072, 8), nn.Linear(8, 4))
    plane = InformationPlane(model, input_sigma=8.0, every=1)
    with pytest.warns(DegenerateInputWarning, match=re.escape("S(X) = 5.322 of log2 N = 5.322 bits")) as caught:
        plane.record(inputs, labels)
        plane.record(inputs, labels)
    assert len(caught) == 1 and caught[0].filename == __file__
    history = plane.history
    torch.testing.assert_close(history.information[:, :, 0], history.layer_entropy, rtol=0, atol=ROUNDING)
    wide = InformationPlane(model)
    wide.record(inputs, labels)
    assert (wide.history.layer_entropy - wide.history.information[:, :, 0]).min() > 0.1


@pytest.mark.filterwarnings("error::hrel_ext.report.DegenerateInputWarning")
def test_a_width_by_rule_is_never_degenerate(rng):
    for scale in (1e-3, 1.0, 1e3):
        for rule in ("median", "mean", "aligned"):
            plane = InformationPlane(nn.Sequential(nn.Linear(300, 4)), input_sigma=rule)
            assert plane.record(scale * torch.randn(40, 300, generator=rng), torch.arange(40) % 4)


def train(record: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    torch.manual_seed(5)
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plane = InformationPlane(model, every=2)
    for _ in range(5):
        inputs, labels = mini_batch(torch.default_generator)
        loss = cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if record:
            plane.record(inputs, labels)
    return model.state_dict(), torch.rand(3)


def test_recording_changes_no_weight_no_statistic_and_no_random_number():
    (plain, after), (recorded, after_recorded) = train(False), train(True)
    assert torch.equal(after, after_recorded)
    assert all(torch.equal(plain[name], recorded[name]) for name in plain)


@pytest.mark.parametrize("fault", ("model", "output", "not finite"))
def test_modes_and_hooks_are_restored_after_an_error(rng, fault):
    model = small_network()
    model[1].eval()  # a mode of its own
    modes = [module.training for module in model.modules()]
    inputs, labels = mini_batch(rng)
    plane = InformationPlane(model, layers=["0", "5"])
    if fault == "model":
        model[4].forward = lambda x: 1 / 0
    elif fault == "output":
        model[5].forward = lambda x: None
    else:
        nn.init.constant_(model[5].bias, math.nan)
    message = {
        "model": "division by zero",
        "output": "the output of layer '5' must be a tensor of shape (N, F, ...), got NoneType",
        "not finite": "layer '5': acts must be finite, filter 0 holds NaN or Inf",
    }[fault]
    with pytest.raises((ZeroDivisionError, ValueError), match=f"^{re.escape(message)}$"):
        plane.record(inputs, labels)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_every_tenth_iteration_and_the_first_of_each_stage_are_recorded(rng):
    plane = InformationPlane(small_network())
    inputs, labels = mini_batch(rng)
    recorded = [plane.record(inputs, labels) for _ in range(12)]
    plane.begin("cycle 1")
    plane.begin("skipped")
    recorded += [plane.record(inputs, labels) for _ in range(12)]
    assert [number for number, was in enumerate(recorded, 1) if was] == [1, 11, 13, 23]
    assert plane.history.iterations.tolist() == [1, 11, 13, 23]
    assert plane.history.stages == {"training": slice(0, 2), "skipped": slice(2, 4)}
    assert plane.history.header.stages == {"training": 0, "cycle 1": 12, "skipped": 12}
    assert repr(plane.history) == "PlaneHistory(4 points; 0, 5)"


def test_a_smaller_last_mini_batch_is_left_out_and_the_next_one_recorded(rng):
    plane = InformationPlane(small_network(), every=2)
    sizes = (24, 24, 9, 24, 24)
    assert [plane.record(*mini_batch(rng, size)) for size in sizes] == [True, False, False, True, False]
    assert plane.history.iterations.tolist() == [1, 4]
    plane.record(*mini_batch(rng, 9))
    message = "mini-batches must all have 24 samples like the first, the last of an epoch excepted, got "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}9 after another smaller one$"):
        plane.record(*mini_batch(rng, 9))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}27$"):
        plane.record(*mini_batch(rng, 27))


def test_the_distance_moved_is_that_of_the_mean_of_the_last_points(rng):
    plane = InformationPlane(small_network(), every=1)
    for stage in ("baseline", "pruned"):
        plane.begin(stage)
        for _ in range(3):
            plane.record(*mini_batch(rng))
    history = plane.history
    values = torch.zeros(6, 2, 2)
    values[1:3, 0] = torch.tensor([[1.0, 1.0], [3.0, 1.0]])  # layer 0 ends the baseline at (2, 1)
    values[4:, 0] = torch.tensor([5.0, 5.0])
    history = PlaneHistory(**{**vars(history), "information": values})
    assert history.final("baseline", last=2).tolist() == [[2.0, 1.0], [0.0, 0.0]]
    assert history.moved("baseline", "pruned", last=2).tolist() == [5.0, 0.0]  # sides 3 and 4
    assert history.final("baseline", last=99).tolist() == pytest.approx(values[:3].mean(0).numpy())
    with pytest.raises(ValueError, match=re.escape("stage must be one with points (baseline, pruned), got 'x'")):
        history.final("x")
    with pytest.raises(ValueError, match=r"^last must be at least 1, got 0$"):
        history.moved("baseline", "pruned", last=0)


def test_a_pruned_layer_is_found_by_its_name(rng):
    model = small_network()
    plane = InformationPlane(model, every=1)
    plane.record(*mini_batch(rng))
    model[0], model[1], model[5] = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(32, 3)
    plane.begin("pruned")
    assert plane.record(*mini_batch(rng))
    assert plane.history.information.shape == (2, 2, 2)


def test_layers_are_those_that_collect_takes(rng):
    batch = mini_batch(rng)
    model = small_network()
    plane = InformationPlane(model, where="relu")
    plane.record(*batch)
    by_name = InformationPlane(model, layers={"0": model[2]})
    by_name.record(*batch)
    assert torch.equal(plane.history.information, by_name.history.information)
    with pytest.raises(ValueError, match=re.escape("layers must be modules of the model, got others for x")):
        InformationPlane(model, layers={"x": nn.Linear(2, 2)})


def test_half_precision_layers_are_looked_at_in_float32(rng):
    inputs, labels = mini_batch(rng)
    plane = InformationPlane(small_network())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plane.record(inputs, labels)
    assert plane.history.information.dtype == torch.float32 and (plane.history.information > 0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"every": 0}, ValueError, "every must be >= 1, got 0"),
        ({"every": 1.0}, TypeError, "every must be an int, got float"),
        ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
        ({"input_sigma": 0}, ValueError, "input_sigma must be > 0 and finite, got 0"),
        (
            {"input_sigma": "layer"},
            ValueError,
            'input_sigma must be a positive number or one of "median", "mean", "aligned", got \'layer\'',
        ),
        ({"input_sigma": None}, TypeError, "input_sigma must be a positive number or a rule, got NoneType"),
        ({"alpha": 0}, ValueError, "alpha must be > 0 and finite, got 0"),
        ({"layers": ["7"]}, ValueError, "layers must be among the model's modules (0, 1, 2, 3, 4, 5), got '7'"),
        ({"where": "x"}, ValueError, "where must be one of 'conv', 'bn', 'relu', 'pool', got 'x'"),
    ),
)
def test_wrong_settings_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        InformationPlane(small_network(), **arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    (
        (lambda x, y: (x.long(), y), TypeError, "inputs must be a floating point tensor of shape (N, ...), got torch."),
        (lambda x, y: (x, y.float()), TypeError, "labels must have an integer dtype, got torch.float32"),
        (
            lambda x, y: (x, y[1:]),
            ValueError,
            "labels must have shape (N,) = (24,) to match inputs of shape (24, 1, 6,",
        ),
        (lambda x, y: (x, y - 1), ValueError, "labels must be class ids >= 0, got -1"),
        (
            lambda x, y: (torch.zeros_like(x), y),
            ValueError,
            'input_sigma="median" must find a median distance > 0 between the inputs, got 0',
        ),
    ),
)
def test_wrong_mini_batches_are_named(rng, change, error, message):
    plane = InformationPlane(small_network())
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        plane.record(*change(*mini_batch(rng)))


def test_stages_need_names_of_their_own():
    plane = InformationPlane(small_network())
    plane.begin("a")
    for name in ("a", ""):
        message = f"stage must be a new name, not empty and not one of those so far (a), got {name!r}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            plane.begin(name)
    with pytest.raises(ValueError, match=r"^an information plane must hold at least one recorded iteration, got none$"):
        plane.save("nowhere")


@pytest.fixture
def saved(rng, tmp_path):
    plane = InformationPlane(small_network(), every=3, seed=7, input_sigma=11.0)
    for stage in ("baseline", "cycle 1"):
        plane.begin(stage)
        for _ in range(5):
            plane.record(*mini_batch(rng))
    plane.save(tmp_path / "plane.safetensors")
    return plane, tmp_path / "plane.safetensors"


def test_a_plane_comes_back_bit_for_bit(saved):
    plane, path = saved
    loaded, history = PlaneHistory.load(str(path)), plane.history
    assert loaded.header == history.header
    assert (loaded.header.seed, loaded.header.batch_size, loaded.header.steps) == (7, 24, 10)
    assert loaded.header.versions.keys() == {"hrel_ext", "torch"} and loaded.header.input_sigma == "given"
    for name, tensor in vars(history).items():
        assert name == "header" or torch.equal(getattr(loaded, name), tensor)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_resumed_plane_goes_on_as_if_nothing_had_happened(saved, rng):
    plane, path = saved
    resumed = InformationPlane.resume(plane._model, path)
    for number in range(12):
        if number == 6:
            plane.begin("cycle 2"), resumed.begin("cycle 2")
        batch = mini_batch(rng)
        assert plane.record(*batch) == resumed.record(*batch)
    assert resumed.history.header == plane.history.header
    for name in ("iterations", "information", "widths", "input_widths"):
        assert torch.equal(getattr(resumed.history, name), getattr(plane.history, name))
    with pytest.raises(ValueError, match=r"^layers must be among the model's modules"):
        InformationPlane.resume(nn.Sequential(nn.Conv2d(1, 4, 3)), path)


def rewrite(path, header=None, **tensors):
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["hrel_ext.information_plane"])
    save_file(
        {**load_file(path), **tensors},
        path,
        metadata={"hrel_ext.information_plane": json.dumps({**content, **(header or {})})},
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    (
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "must be a whole safetensors file: "),
        (
            lambda path: save_file({"x": torch.ones(1)}, path),
            "must have 'hrel_ext.information_plane' in its metadata, got []",
        ),
        (
            lambda path: rewrite(path, {"schema_version": 9}),
            "must hold an information plane: schema_version must be 1, got 9",
        ),
        (
            lambda path: rewrite(path, {"seed": "7"}),
            "must hold an information plane: seed must be of type int or NoneType, got str",
        ),
        (
            lambda path: rewrite(path, widths=torch.full((4, 2), math.nan)),
            "must hold an information plane: widths must be float32 and finite, got torch.float32",
        ),
        (
            lambda path: rewrite(path, iterations=torch.ones(4)),
            "must hold an information plane: iterations must be int64 and finite, got torch.float32",
        ),
        (
            lambda path: rewrite(path, widths=torch.ones(4, 3)),
            "must hold an information plane: widths must have shape (4, 2) for 4 points and 2 layers, got (4, 3)",
        ),
        (
            lambda path: rewrite(path, iterations=torch.tensor([1, 4, 4, 9])),
            "must hold an information plane: iterations must be > 0 and ascending, got [1, 4, 4, 9]",
        ),
        (
            lambda path: rewrite(path, {"stages": {"late": 3}}),
            "must hold an information plane: stages must begin in order, the first before the first point, got {'late'",
        ),
        (
            lambda path: rewrite(path, {"steps": 8}),
            "must hold an information plane: steps must be at least the last iteration, 9, got 8",
        ),
        (
            lambda path: rewrite(path, {"layers": {}}),
            "must hold an information plane: an information plane must hold a point and a layer, got 4 and 0",
        ),
    ),
)
def test_a_file_that_is_no_plane_is_refused(saved, damage, message):
    _, path = saved
    damage(path)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path} {message}')}"):
        PlaneHistory.load(path)
