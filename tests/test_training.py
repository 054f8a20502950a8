"""Training and the whole experiment: repeatable, the epoch chosen on validation, the test split read twice."""
# SPDX-License-Identifier: MIT

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from hrel_ext import experiment
from hrel_ext.pruning import evaluate, train
from hrel_ext.recipes import RECIPES, Stage
from hrel_ext.zoo.data import Batches, Split, Splits


@pytest.fixture
def split(rng):
    labels = torch.arange(60) % 3
    return Split(torch.randn(60, 4, generator=rng) + nn.functional.one_hot(labels, 4), labels)


def perceptron():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def trained(split, **options):
    model = perceptron()
    options = {"epochs": 4, "learning_rate": 0.1, "seed": 1, **options}
    return model, train(model, Batches(split, 10, seed=2), Batches(split, 60), **options)


def test_a_seed_repeats_a_training_bit_for_bit(split):
    torch.manual_seed(1)
    first, history = trained(split)
    torch.manual_seed(2)  # the seed of the call counts, not the state it finds
    second, again = trained(split)
    assert history == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other, _ = trained(split, seed=3)  # other dropout
    assert not torch.equal(first[0].weight, other[0].weight)


def test_the_network_has_the_weights_of_the_best_epoch(split):
    seen = {}
    model = perceptron()
    against = Batches(Split(split.images, (split.labels + 1) % 3), 60)  # the better it learns, the worse it does here
    training = train(
        model,
        Batches(split, 10, seed=2),
        against,
        epochs=6,
        learning_rate=0.1,
        on_epoch=lambda epoch: seen.setdefault(epoch.number, model[0].weight.detach().clone()),
    )
    accuracies = [epoch.validation.accuracy for epoch in training.epochs]
    assert training.best.validation.accuracy == max(accuracies) > accuracies[-1]
    assert torch.equal(model[0].weight, seen[training.best.number])
    assert evaluate(model, against) == training.best.validation


def test_a_step_schedule_divides_by_ten_after_its_milestone(split):
    # Without momentum and weight decay, the step in a repeated batch is proportional to the learning rate.
    steps = []
    model = nn.Linear(4, 3)
    before = [model.weight.detach().clone()]

    def step(_):
        steps.append((model.weight - before[0]).norm().item())
        before[0] = model.weight.detach().clone()

    options = {"momentum": 0.0, "weight_decay": 0.0, "milestones": (1,), "on_epoch": step}
    train(model, Batches(split, 60), Batches(split, 60), epochs=2, learning_rate=1e-3, **options)
    assert steps[0] / steps[1] == pytest.approx(10, rel=0.01)


def first_step(split, **options):
    """What one step of gradient descent with learning rate 1e-3 takes off the weights of a linear layer: 1e-3 times the
    gradient of the loss."""
    torch.manual_seed(3)
    model = nn.Linear(4, 3)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    options = {"epochs": 1, "learning_rate": 1e-3, "milestones": (1,), "momentum": 0.0, "weight_decay": 0.0, **options}
    train(model, Batches(split, 60), Batches(split, 60), **options)
    return [b - parameter.detach() for b, parameter in zip(before, model.parameters(), strict=True)], before


def gradient(weights, loss):
    weights = [weight.double().requires_grad_() for weight in weights]
    return [1e-3 * g.float() for g in torch.autograd.grad(loss(*weights), weights)]


def test_parts_of_a_mini_batch_add_up_to_its_gradient(split):
    whole, _ = first_step(split)
    parts, _ = first_step(split, accumulate=7)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-7)


RANK = """
import sys, torch
from torch import nn
from hrel_ext.pruning import train
from hrel_ext.zoo.data import Batches, Split
data = torch.load(sys.argv[1])
split, some = (Split(data["images"][:n], data["labels"][:n]) for n in (60, 55))
torch.manual_seed(5)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8) if sys.argv[3] == "norm" else nn.Tanh(), nn.Linear(8, 3))
options = {"epochs": 2, "learning_rate": 0.1, "accumulate": 2, "checkpoint": sys.argv[2] + "/states"}
training = train(model, Batches(some, 11), Batches(split, 60), **options)
rank = torch.distributed.get_rank()
torch.save([model.state_dict(), training.epochs[-1].loss], f"{sys.argv[2]}/{rank}.pt")
assert train(model, Batches(some, 11), Batches(split, 60), **options) == training
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("layer", ("tanh", "norm"))
def test_two_processes_average_their_gradients_and_end_with_the_same_weights(layer, split, tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    torch.save({"images": split.images, "labels": split.labels}, tmp_path / "split.pt")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(tmp_path / name) for name in ("rank.py", "split.pt", "")] + [layer]
    done = subprocess.run(torchrun + arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (first, loss), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert loss == other and all(torch.equal(first[name], second[name]) for name in first)
    if layer == "norm":
        return
    torch.manual_seed(5)
    alone = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    pairs = Split(split.images[:44], split.labels[:44])  # four of five mini-batches, the last has no partner
    training = train(alone, Batches(pairs, 22), Batches(split, 60), epochs=2, learning_rate=0.1)
    assert loss == pytest.approx(training.epochs[-1].loss, abs=1e-6)
    torch.testing.assert_close(first, dict(alone.state_dict()), rtol=0, atol=1e-6)


def test_a_teacher_and_smooth_labels_enter_the_loss_by_their_formula(split):
    torch.manual_seed(4)
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9)).train()
    x, y = split.images.double(), split.labels

    def smooth(weight, bias):
        log_p = (x @ weight.T + bias).log_softmax(1)
        target = 0.8 * nn.functional.one_hot(y, 3) + 0.2 / 3
        return -(target * log_p).sum(1).mean()

    def with_teacher(weight, bias):
        with torch.no_grad():
            wanted = (teacher[0](split.images).double() / 4).softmax(1)
        soft = (wanted * (wanted.log() - ((x @ weight.T + bias) / 4).log_softmax(1))).sum(1).mean()
        return 0.75 * nn.functional.cross_entropy(x @ weight.T + bias, y) + 0.25 * 16 * soft

    step, weights = first_step(split, label_smoothing=0.2)
    torch.testing.assert_close(step, gradient(weights, smooth), rtol=0, atol=2e-7)
    step, weights = first_step(split, teacher=teacher, distillation=0.25)
    torch.testing.assert_close(step, gradient(weights, with_teacher), rtol=0, atol=2e-7)
    assert teacher.training and teacher[0].weight.grad is None


def test_mixed_precision_leaves_the_network_as_it_was_but_for_its_weights(split):
    model, training = trained(split, precision="bf16")
    assert "forward" not in vars(model) and model(split.images).dtype == torch.float32
    assert training.best.validation == evaluate(model, Batches(split, 60))
    other, _ = trained(split)
    assert not torch.equal(model[0].weight, other[0].weight)
    assert training.epochs[-1].loss < training.epochs[0].loss


def test_evaluation_is_the_closed_form_for_known_logits():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    model.train()
    result = evaluate(model, [(logits[:2], torch.tensor([0, 0])), (logits[2:], torch.tensor([0]))])
    assert result.accuracy == pytest.approx(2 / 3)
    losses = [torch.tensor(-d).exp().log1p().item() for d in (2.0, -1.0, 3.0)]  # log(1 + exp(-margin))
    assert result.loss == pytest.approx(sum(losses) / 3)
    assert model.training
    with pytest.raises(ValueError, match="batches must hold at least one sample, got none"):
        evaluate(model, [])


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"precision": "fp8"}, "precision must be one of no, bf16, fp16, got 'fp8'"),
        ({"distillation": 1.5}, "distillation must be between 0 and 1, got 1.5"),
        ({"distillation": 0.5}, "distillation must be 0 without a teacher, got 0.5"),
        (
            {"teacher": nn.Linear(4, 3), "distillation": 0.5, "label_smoothing": 0.1},
            "label_smoothing must be 0 with a teacher, got 0.1",
        ),
        ({"teacher": nn.Linear(4, 3)}, "distillation must be above 0 with a teacher, got 0.0"),
        ({"device": "tpu"}, "device must be cpu or cuda, got 'tpu'"),
    ),
)
def test_wrong_arguments_are_named(split, options, message):
    with pytest.raises(ValueError, match=message):
        trained(split, **options)


def test_a_diverged_training_is_an_error(split):
    broken = Split(torch.full_like(split.images, float("nan")), split.labels)
    with pytest.raises(RuntimeError, match="training diverged: the loss is nan in epoch 1 at learning rate"):
        trained(broken)


def test_an_experiment_reads_the_test_split_twice_and_reports_what_it_did(rng, tmp_path, monkeypatch):
    labels = torch.arange(90) % 10
    images = torch.rand(90, 1, 28, 28, generator=rng) + labels[:, None, None, None] / 10
    splits = Splits(*(Split(images[part], labels[part]) for part in (slice(60), slice(60, 75), slice(75, 90))))
    sizes = []

    def counted(model, batches):
        batches = list(batches)
        sizes.append(torch.cat([x for x, _ in batches]).equal(splits.test.images))
        return evaluate(model, batches)

    monkeypatch.setattr(experiment, "evaluate", counted)
    short = Stage(epochs=1, learning_rate=0.01)
    recipe = dataclasses.replace(
        RECIPES["lenet5", "digits"],
        limits={"conv1": 18, "conv2": 40},
        baseline=short,
        cycle=short,
        final=short,
        batch_size=20,
    )
    report = experiment.run(recipe, splits, seed=0, device="cpu", output=tmp_path, command="hrel prune lenet5")
    assert sum(sizes) == 2 and len(sizes) == 4  # and validation once in each of the two cycles
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report["samples"] == {"train": 60, "validation": 15, "test": 15}
    assert report["filters"]["after"] == {"conv1": 18, "conv2": 40}
    assert [row["mini_batches"]["conv2"] for row in report["cycles"]] == [3, 3]
