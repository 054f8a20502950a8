"""Runs that are interrupted: killed at random moments, with damaged states, on a full disk; nothing is lost."""
# SPDX-License-Identifier: MIT

import dataclasses
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from hrel_ext import experiment, recording
from hrel_ext.pruning import DamagedCheckpointWarning, Latency, Random, cost, count, prune, train
from hrel_ext.pruning.resume import Checkpoints
from hrel_ext.recipes import RECIPES, Stage
from hrel_ext.zoo.data import Batches, Split, Splits, digits

RUNS = 20
short = Stage(epochs=2, learning_rate=0.02)
RECIPE = dataclasses.replace(
    RECIPES["lenet5", "digits"],
    limits={"conv1": 17, "conv2": 30},
    baseline=short,
    cycle=short,
    final=short,
    batch_size=50,
    label_smoothing=0.1,
    distillation=0.5,
    plane_every=2,
)


def some_digits():
    splits = digits(0)
    return Splits(
        *(Split(part.images[:100], part.labels[:100]) for part in (splits.train, splits.validation, splits.test))
    )


def run(output, splits=None, observer=None):
    experiment.LATENCY_BATCH = 1  # sixty passes are timed
    splits = splits or some_digits()
    return experiment.run(RECIPE, splits, seed=0, device="cpu", output=output, command="hrel prune", observer=observer)


def result_of(folder):
    """What must not depend on interruptions."""
    report = json.loads((folder / "report.json").read_text())
    accuracies = [report[side][f"{split}_accuracy"] for side in ("before", "after") for split in ("validation", "test")]
    told = ("removed", "score_mean", "widths", "relevance_at_first_width", "validation_accuracy")
    cycles = [tuple(row[name] for name in told) for row in report["cycles"]]
    files = [(folder / name).read_bytes() for name in ("model.safetensors", "plane.safetensors")]
    return report["filters"], accuracies, cycles, files


def main(folder):
    """Run once, then again and again with a SIGKILL at a random moment, each in a fork of a process with one thread."""

    import torch._dynamo  # the first call of an op would import it, seconds in each fork

    splits = some_digits()

    def fork(output):
        if not (child := os.fork()):
            torch.set_num_threads(1)
            run(output, splits)
            os._exit(0)
        return child

    assert os.waitstatus_to_exitcode(os.waitpid(fork(folder / "reference"), 0)[1]) == 0  # files are in the cache now
    start = time.perf_counter()
    assert os.waitstatus_to_exitcode(os.waitpid(fork(folder / "again"), 0)[1]) == 0
    seconds = time.perf_counter() - start
    draw = random.Random(0)
    killed = 0
    for number in range(RUNS):
        output = folder / str(number)
        child = fork(output)
        time.sleep(draw.uniform(0.02, 1) * seconds)
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert os.waitstatus_to_exitcode(os.waitpid(fork(output), 0)[1]) == 0, output
    print(killed)


def test_runs_killed_at_random_moments_end_like_one_that_was_not(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= RUNS / 2  # the others were finished before
    reference = result_of(tmp_path / "reference")
    for number in range(RUNS):
        assert result_of(tmp_path / str(number)) == reference, number
        files = sorted(file.name for file in (tmp_path / str(number)).iterdir())
        assert [name for name in files if not name.startswith(".")] == [  # a kill can leave a half-written hidden one
            "model.pt",
            "model.safetensors",
            "plan.json",
            "plane.safetensors",
            "report.json",
            "scores.safetensors",
        ]


def test_a_run_goes_on_after_an_error_and_shows_what_was_done(tmp_path):
    cycles = []

    class Stop(Exception):
        pass

    def stop(cycle):
        cycles.append(cycle.number)
        if cycles == [1, 2]:
            raise Stop

    observer = experiment.Observer(on_cycle=stop)
    (tmp_path / ".checkpoints/run").mkdir(parents=True)  # what a kill leaves while a finished run clears up
    with pytest.raises(Stop):
        run(tmp_path, observer=observer)
    clock = Checkpoints(tmp_path / "checkpoints/clock", {}).latest() / "clock.json"
    first = json.loads(clock.read_text())["seconds"]
    start = time.perf_counter()
    report = run(tmp_path, observer=observer)
    second = time.perf_counter() - start
    assert report["resumed"] == 1 and cycles == [1, 2, 1, 2, 3, 4]
    assert first["total"] < report["seconds"]["total"] < first["total"] + second  # both parts
    assert sum(first.values()) > 0 and all(report["seconds"][name] >= first[name] for name in first)
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / ".checkpoints").exists()


def test_the_clock_of_a_run_adds_up_its_parts(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(recording.time, "perf_counter", lambda: now[0])
    assert recording.Clock(tmp_path, going_on=False).parts == 1
    clock = recording.Clock(tmp_path, going_on=True)  # killed at once
    with pytest.raises(KeyboardInterrupt), clock.time("total"):
        now[0] += 1
        with clock.time("train"):
            now[0] += 2
            clock.save()
            now[0] += 4
            raise KeyboardInterrupt
    clock = recording.Clock(tmp_path, going_on=True)
    assert clock.parts == 3 and clock.seconds == {"total": 7, "train": 6}
    with clock.time("total"):
        now[0] += 8
        clock.save()
        now[0] += 16  # killed here
        assert recording.Clock(tmp_path, going_on=True).seconds == {"total": 15, "train": 6}
    assert clock.seconds == {"total": 31, "train": 6}


def test_a_disk_without_room_ends_a_run_and_loses_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # what a file may hold: stands for a full disk

    def fill(cycle):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    try:
        with pytest.raises(OSError, match=r"checkpoints/cycles, the one before it is kept: .*File too large"):
            run(tmp_path, observer=experiment.Observer(on_cycle=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    numbers = []
    assert run(tmp_path, observer=experiment.Observer(on_cycle=lambda cycle: numbers.append(cycle.number)))["resumed"]
    assert numbers == [1, 2, 3, 4]


def test_an_unfinished_run_of_other_settings_is_refused(tmp_path):
    Checkpoints(tmp_path / "checkpoints/run", {"seed": 1}).save(lambda folder: None)
    with pytest.raises(ValueError, match=r"must hold no unfinished run of other settings; give another, or delete .*"):
        run(tmp_path)


@pytest.fixture
def store(tmp_path):
    store = Checkpoints(tmp_path / "states", {"rate": 0.1, "layers": ("a", "b")})
    for number in range(4):
        store.save(lambda folder, number=number: (folder / "number").write_text(str(number)))
    return store


def test_the_last_two_states_are_kept(store, tmp_path):
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["000003", "000004"]
    assert (store.latest() / "number").read_text() == "3"
    assert Checkpoints(tmp_path / "none", {}).latest() is None


@pytest.mark.parametrize("damage", ("truncated", "flipped", "missing", "manifest", "empty", "path"))
def test_a_damaged_state_is_noticed_and_the_one_before_it_used(damage, store, tmp_path):
    newest = tmp_path / "states/000004"
    manifest = newest / "manifest.json"
    if damage == "truncated":
        (newest / "number").write_text("")
    elif damage == "flipped":
        (newest / "number").write_bytes(bytes([(newest / "number").read_bytes()[0] ^ 1]))
    elif damage == "missing":
        (newest / "number").unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    elif damage == "empty":
        manifest.write_text("{}")
    else:
        manifest.write_text(manifest.read_text().replace('"number"', '"../../number"'))
    with pytest.warns(DamagedCheckpointWarning, match=r"000004 is damaged, the one before it is used: "):
        assert (store.latest() / "number").read_text() == "2"
    (tmp_path / "states/000003/manifest.json").write_text("[]")
    with pytest.warns(DamagedCheckpointWarning, match=r"000003 is damaged, there is none before it: "):
        assert store.latest() is None


def test_other_settings_are_named(store, tmp_path):
    message = "must be of the same work, got rate 0.1 there and 0.2 here, seed null there and 3 here"
    with pytest.raises(ValueError, match=re.escape(message)):
        Checkpoints(tmp_path / "states", {"rate": 0.2, "layers": ["a", "b"], "seed": 3}).latest()


def test_a_write_that_fails_leaves_the_states_there_were(store, tmp_path):
    def full(folder):
        (folder / "number").write_text("half")
        raise OSError(28, "No space left on device")

    message = "states, the one before it is kept: [Errno 28] No space left on device"
    with pytest.raises(OSError, match=re.escape(message)):
        store.save(full)
    assert (store.latest() / "number").read_text() == "3" and not (tmp_path / "states/.unfinished").exists()


def perceptron():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 3))


@pytest.fixture
def split(rng):
    labels = torch.arange(60) % 3
    return Split(torch.randn(60, 4, generator=rng) + nn.functional.one_hot(labels, 4), labels)


@pytest.mark.parametrize("milestones", (None, (1, 3)))
def test_a_training_goes_on_bit_for_bit_and_a_finished_one_returns(milestones, split, tmp_path):
    def trained(checkpoint=None, stop=None):
        def on_epoch(epoch):
            seen.append(epoch.number)
            if epoch.number == stop:
                raise KeyboardInterrupt

        model, seen = perceptron(), []
        batches = Batches(split, 10, seed=2, augment=lambda x, g: x + torch.rand(x.shape, generator=g))
        options = {"epochs": 5, "learning_rate": 0.1, "milestones": milestones, "checkpoint": checkpoint}
        history = train(model, batches, Batches(split, 60), seed=1, on_epoch=on_epoch, **options)
        return model.state_dict(), history, seen

    whole, history, _ = trained()
    for stop in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, stop)
    for _ in range(2):
        weights, again, seen = trained(tmp_path)
        assert again == history and seen == [1, 2, 3, 4, 5]
        assert all(torch.equal(weights[name], whole[name]) for name in whole)


def clock_of_macs(model, inputs, **_):
    return Latency(count(model, inputs).macs / 1e4, 1, 1, 1, "cpu")


@pytest.mark.parametrize("target", ({"macs": numpy.float32(0.4)}, {"latency_ms": 0.9}), ids=str)
def test_pruning_goes_on_with_an_optimizer_and_does_not_score_twice(target, rng, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "measure_latency", clock_of_macs)
    labels = torch.arange(16) % 4
    batches = [(torch.rand(16, 3, 8, 8, generator=rng) * 2 + labels[:, None, None, None], labels) for _ in range(3)]
    scored = []

    def pruned(checkpoint=None, stop=None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
        model.append(nn.Linear(128, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def retrain(model, number):
            if number == stop:
                raise KeyboardInterrupt
            for x, y in batches:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()

        result = prune(
            model,
            batches,
            torch.zeros(1, 3, 8, 8),
            target=target,
            cycles=3,
            retrain=retrain,
            evaluate=lambda model: 0.5,
            max_drop=0.1,
            optimizer=optimizer,
            checkpoint=checkpoint,
            progress=lambda batches: scored.append(stop) or batches,
        )
        momenta = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
        return result, [*model.state_dict().values(), *momenta]

    result, tensors = pruned()
    assert len(scored) == 3
    for stop, passes in ((2, 2), (3, 1)):
        scored.clear()
        with pytest.raises(KeyboardInterrupt):
            pruned(tmp_path, stop)
        assert len(scored) == passes
    scored.clear()
    again, same = pruned(tmp_path)
    assert not scored  # the last cycle had been scored before it was interrupted
    assert all(map(torch.equal, tensors, same))
    for name in ("target", "layers", "kept", "latency_ms"):
        assert getattr(again.plan, name) == getattr(result.plan, name), name
    assert again.plan.layers[0].asked > 0
    for cycle, other in zip(result.cycles, again.cycles, strict=True):
        assert (cycle.removed, cycle.kept, cycle.accuracy, cycle.cost) == (
            other.removed,
            other.kept,
            other.accuracy,
            other.cost,
        )
        assert all(torch.equal(cycle.scores[n].per_batch, other.scores[n].per_batch) for n in cycle.scores)
    with pytest.raises(ValueError, match="must be of the same work, got cycles 3 there and 2 here"):
        prune(
            nn.Sequential(nn.Conv2d(3, 8, 3)),
            batches,
            torch.zeros(1, 3, 8, 8),
            target=target,
            cycles=2,
            checkpoint=tmp_path,
        )


def test_a_criterion_of_other_options_is_other_work(tmp_path):
    batches = [(torch.zeros(4, 3, 8, 8), torch.arange(4) % 2)]

    def pruned(seed):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        prune(model, batches, batches[0][0], target={"macs": 0.5}, criterion=Random(seed=seed), checkpoint=tmp_path)

    pruned(1)
    pruned(1)
    with pytest.raises(ValueError, match=r'got criterion_options \{"seed": 1\} there and \{"seed": 2\} here'):
        pruned(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
