"""Two processes of torchrun work as one: same scores, same network, one output; if one is killed, they go on."""
# SPDX-License-Identifier: MIT

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import hrel_ext
from hrel_ext import _ranks, experiment, scores
from hrel_ext.collect import full_batches
from hrel_ext.pruning import CRITERIA, evaluate, prune, pruner, recalibrate
from hrel_ext.recipes import RECIPES, Stage
from hrel_ext.zoo.data import Batches, CropAndFlip, Split, Splits, digits

short = Stage(epochs=1, learning_rate=0.02)
RECIPE = dataclasses.replace(
    RECIPES["lenet5", "digits"],
    limits={"conv1": 18, "conv2": 40},
    baseline=short,
    cycle=short,
    final=short,
    batch_size=25,
)


def network():
    torch.manual_seed(11)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 24**2, 10)
    )


def data(count=110, batch_size=20, seed=3):
    part = digits(0).train
    return Batches(Split(part.images[:count], part.labels[:count]), batch_size, seed=seed)


def table_of(criterion, batches, **options):
    made = CRITERIA[criterion](batches, **options).table(network())
    return {name: (layer.per_batch, layer.mean) for name, layer in made.items()}


def results():
    """What must not depend on the number of processes: bit by bit in `same`, to 1e-6 in `close`."""
    same, close = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hrel_ext.IndistinguishableScoresWarning)
        table = hrel_ext.collect(network(), data(), permutations=3)
        same["labels of a loader"] = [labels for _, labels in full_batches(data())]
        for name, layer in table.items():
            same[f"collect {name}"] = [layer.per_batch, layer.widths]
            close[f"null {name}"] = [layer.null]
        one = hrel_ext.collect(network(), data(20))
        same["one mini-batch"] = [layer.per_batch for layer in one.values()]
        scores.MOST_ROWS = 4
        try:
            many = hrel_ext.collect(network(), data(180, 20), sigma="filter")  # nine, of which 0, 4 and 8 are kept
        finally:
            scores.MOST_ROWS = 1024
        for name, layer in many.items():
            same[f"thinned {name}"] = [layer.per_batch, layer.widths]
            close[f"thinned {name}"] = [layer.moments, layer.mean, layer.std]
        for criterion in ("hrel_debiased", "variance", "taylor"):
            close |= {f"{criterion} {name}": both for name, both in table_of(criterion, data()).items()}
        few = [next(iter(data()))]
        close |= {f"alignment {name}": both for name, both in table_of("alignment", few).items()}
        model = network()
        recalibrate(model, data())
        close["batch norm"] = [model[1].running_mean, model[1].running_var]
        evaluation = evaluate(model, data())
        close["evaluation"] = [torch.tensor([evaluation.accuracy, evaluation.loss], dtype=torch.float64)]
        model = network()
        pruned = prune(model, data(), torch.zeros(1, 1, 28, 28), target={"macs": 0.6}, cycles=1)
        same["removed"] = [torch.tensor(indices) for indices in pruned.cycles[0].removed.values()]
    return {"same": same, "close": close}


def errors():
    """What goes wrong on one rank of two, as every rank is told of it."""
    told = {}

    def tell(name, call):
        try:
            call()
        except (ValueError, OSError) as error:
            told[name] = str(error)

    rank = _ranks.rank()
    tell("lengths", lambda: hrel_ext.collect(network(), data(100 - 20 * rank)))
    tell("none", lambda: hrel_ext.collect(network(), [] if rank else data()))
    tell("order", lambda: hrel_ext.collect(network(), data(seed=rank)))
    tell("evaluation", lambda: evaluate(network(), data(100 - 20 * rank)))
    tell("plan", lambda: prune(network(), data(), torch.zeros(1, 1, 28, 28), target={"macs": 1e-9}))
    other = network()
    if rank:
        nn.init.zeros_(other[3].bias)
    tell("network", lambda: prune(other, data(), torch.zeros(1, 1, 28, 28), target={"macs": 0.6}))
    return told


def run(output, killed=False):
    splits = digits(0)
    splits = Splits(*(Split(s.images[:150], s.labels[:150]) for s in (splits.train, splits.validation, splits.test)))
    experiment.LATENCY_BATCH = 1
    if killed:  # at the start of the second cycle
        checks = []
        check = pruner._check_ranks

        def check_or_die(model):
            checks.append(model)
            if len(checks) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            check(model)

        pruner._check_ranks = check_or_die
    return experiment.run(RECIPE, splits, seed=0, device="cpu", output=output, command="hrel prune")


def scored(folder):
    """One of two processes: what both must have found is written to RANK.pt."""
    with _ranks.joined("cpu"):
        found = {**results(), "errors": errors()}
        rank = _ranks.rank()
        torch.save(found, folder / f"{rank}.pt")
        _ranks.gather(None)
    os.environ[_ranks.TIMEOUT] = "1"
    try:
        with _ranks.joined("cpu"):
            if rank == 0:
                _ranks.gather(None)
            else:
                time.sleep(4)
    except ConnectionError as error:
        print(f"the wait ended: {error}".splitlines()[0], flush=True)
    del os.environ[_ranks.TIMEOUT]


def resumed(folder):
    """One of two processes: rank 1 kills itself; torchrun starts both again, which go on, and then run another time."""
    again = os.environ["TORCHELASTIC_RESTART_COUNT"] == "1"
    rank = int(os.environ["RANK"])
    if again and rank == 0:
        shutil.copytree(folder / "killed", folder / "alone")
    try:
        run(folder / "killed", killed=rank == 1 and not again)
        run(folder / "whole")
    except ConnectionError as error:
        print(f"told: {error}", flush=True)
        sys.exit(2)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What two processes have printed, and the folder of what they wrote: one start of torchrun, and its restart."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "--max-restarts", "1", __file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


def test_two_processes_score_as_one_and_are_told_what_is_wrong(launched):
    printed, folder = launched
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = results()
    finally:
        torch.set_num_threads(threads)
    for ranks in (first, second):
        for name, tensors in alone["same"].items():
            assert all(map(torch.equal, ranks["same"][name], tensors)), name
        for name, tensors in alone["close"].items():
            torch.testing.assert_close(list(ranks["close"][name]), list(tensors), rtol=0, atol=1e-6, msg=name)
    for name, tensors in first["close"].items():
        assert all(map(torch.equal, tensors, second["close"][name])), name
    told = first["errors"]
    assert told == second["errors"]
    checksum = "[0-9a-f]+"
    differ = (
        rf"batches must be the same on every rank, got {{}} mini-batches with labels of checksum {checksum} on rank 0, "
    )
    other = rf"{{}} mini-batches with labels of checksum {checksum} on rank 1"
    for name, counts in (("lengths", (5, 4)), ("none", (6, 0)), ("order", (6, 6))):
        assert re.fullmatch((differ + other).format(*counts), told[name]), told[name]
    assert told["evaluation"] == (
        "batches must be the same on every rank, got 5 mini-batches on rank 0, 4 mini-batches on rank 1"
    )
    assert told["plan"].startswith("target macs") or "in reach" in told["plan"]
    digest = "weights of SHA-256 [0-9a-f]{12}"
    rule = rf"the network must be the same on every rank, got {digest} on rank 0, {digest} on rank 1"
    assert re.fullmatch(rule, told["network"])
    ended = "the wait ended: rank 0 of 2 has lost another one, which was killed or did not answer within 1 s "
    assert f"{ended}(HREL_RANK_TIMEOUT_S): " in printed


def test_a_killed_process_ends_all_and_the_run_goes_on_with_any_number_of_them(launched):
    printed, folder = launched
    assert re.search("told: rank 0 of 2 (has lost another one, which was killed or|was told to stop)", printed)
    killed, whole = (json.loads((folder / name / "report.json").read_text()) for name in ("killed", "whole"))
    assert killed["resumed"] and not whole["resumed"] and killed["ranks"] == whole["ranks"] == 2
    for row, other in zip(killed["cycles"], whole["cycles"], strict=True):
        assert row == other
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]
    threads = torch.get_num_threads()
    try:
        alone = run(folder / "alone")
    finally:
        torch.set_num_threads(threads)
    assert alone["resumed"] and alone["ranks"] == 1 and alone["filters"] == whole["filters"]
    assert alone["cycles"][0] == whole["cycles"][0]  # which was done when it was killed
    assert not (folder / "alone/checkpoints").exists()


def test_a_loader_reads_only_what_is_its_rank_s_and_draws_for_all():
    split = digits(0).train
    split = Split(split.images[:70], split.labels[:70])
    augment = CropAndFlip(3, (0.0,))
    read = []

    class Counted:
        shape = split.images.shape

        def __getitem__(self, rows):
            read.append(rows)
            return split.images[rows]

    whole = Batches(split, 20, seed=5, augment=augment)
    parts = [Batches(Split(Counted(), split.labels), 20, seed=5, augment=augment) for _ in range(3)]
    for _ in range(2):  # the generators go on alike
        batches = list(whole)
        for rank, part in enumerate(parts):
            read.clear()
            own = list(part.for_rank(rank, 3))
            assert len(read) == len(range(rank, 4, 3))
            for number, ((images, labels), (wanted, same)) in enumerate(zip(own, batches, strict=True)):
                assert torch.equal(labels, same) and images.shape == wanted.shape
                assert torch.equal(images, wanted) if number % 3 == rank else images.is_meta


@pytest.mark.parametrize("text", ("0", "soon", "inf"))
def test_a_timeout_that_is_no_number_of_seconds_is_refused(text, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(_ranks.TIMEOUT, text)
    message = f"HREL_RANK_TIMEOUT_S must be a number of seconds above 0, got '{text}'"
    with pytest.raises(ValueError, match=re.escape(message)), _ranks.joined("cpu"):
        pass


if __name__ == "__main__":
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        scored(Path(sys.argv[1]))
    resumed(Path(sys.argv[1]))
