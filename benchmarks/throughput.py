"""Rates of one process on the CPU for hrel plan-cost, and whether two take what it foresees: results/throughput.json.

    python benchmarks/throughput.py [--rounds 3]

One thread a process. Of each network: multiply-accumulates a second of a forward pass and of a training step (`train`
itself), operations a second of scoring (`collect` less the forward pass). Of two processes of torchrun on this machine:
an all-reduce of a few and of many bytes. Then LeNet-5 is scored and trained by one and by two processes in turns; what
the model foresees for two stands beside what two took. Each time is the least of several, since whatever else runs on
the machine can only add to it; the load average says how much did.
"""
# SPDX-License-Identifier: MIT

import argparse
import io
import json
import math
import os
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from hrel_ext import _ranks, collect
from hrel_ext.cost_model import cpu_rates, map_sizes, score_operations
from hrel_ext.experiment import environment
from hrel_ext.pruning import count, train
from hrel_ext.recipes import EXPERIMENTS
from hrel_ext.zoo.data import SHAPES, Batches, Split, _decoded
from hrel_ext.zoo.models import make_model

ROOT = Path(__file__).parents[1]
SEED = 1789
NETWORKS = (  # name, data, samples in a mini-batch
    ("lenet5", "mnist", 100),
    ("resnet56", "cifar10", 100),
    ("vgg16", "cifar10", 100),
    ("resnet50", "imagefolder", 16),
)
CHECKED, CHECKED_BATCHES = (
    "lenet5-digits",
    10,
)  # the experiment whose two processes are foreseen, of its 11 mini-batches
SMALL_BYTES, LARGE_BYTES = 4096, 2**25
PICTURE = (500, 375)  # pixels, the usual size in ImageNet


def least_s(call: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def made_up(data: str, count: int) -> Split:
    generator = torch.Generator().manual_seed(SEED)
    labels = torch.arange(count) % 10
    return Split(torch.randn(count, *SHAPES[data], generator=generator), labels)


def steps_s(model: torch.nn.Module, split: Split, batch_size: int, epochs: int) -> float:
    """Seconds from the first step of an epoch to its last one, a step: the least of the epochs."""
    times: list[list[float]] = [[]]
    train(
        model,
        Batches(split, batch_size, seed=SEED, drop_last=True),
        Batches(Split(split.images[:1], split.labels[:1]), 1),
        epochs=epochs,
        learning_rate=1e-3,
        on_step=lambda inputs, labels: times[-1].append(time.perf_counter()),
        on_epoch=lambda epoch: times.append([]),
    )
    return min((each[-1] - each[0]) / (len(each) - 1) for each in times if len(each) > 1)


def scoring_s(model: torch.nn.Module, split: Split, batch_size: int, times: int) -> float:
    """Seconds of a pass over all mini-batches: the least of several."""
    batches = Batches(split, batch_size, drop_last=True)

    def score() -> None:
        _ranks.gather(None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these filters are random
            collect(model, batches, sigma=None, alpha=1.0)

    return least_s(score, times)


def network_rates(name: str, data: str, batch_size: int, times: int) -> dict[str, float]:
    torch.manual_seed(SEED)
    model, split = make_model(name), made_up(data, batch_size)
    macs, operations = _counts(model, data, batch_size)
    images = split.images[:batch_size]
    model.eval()
    with torch.no_grad():
        forward_s = least_s(lambda: model(images), times)
    score_s = scoring_s(model, Split(images, split.labels[:batch_size]), batch_size, times) - forward_s
    part = max(1, batch_size // 4)  # a step is long enough with these
    step_s = steps_s(model, Split(split.images[: 3 * part], split.labels[: 3 * part]), part, max(2, times // 2))
    work = batch_size * macs
    return {
        "batch_size": batch_size,
        "forward_ms": 1e3 * forward_s,
        "step_samples": part,
        "step_ms": 1e3 * step_s,
        "score_ms": 1e3 * score_s,
        "forward": work / forward_s,
        "train": part * macs / step_s,
        "score": operations / score_s,
    }


def _counts(model: torch.nn.Module, data: str, n: int) -> tuple[int, float]:
    """Multiply-accumulates of a sample, and operations that score a mini-batch of all convolutions."""
    example = torch.zeros(1, *SHAPES[data])
    sizes = map_sizes(model, example)
    operations = sum(score_operations(n, d, model.get_submodule(name).out_channels) for name, d in sizes.items())
    return count(model, example).macs, operations


def decode_images_per_s(times: int) -> float:
    """Of JPEG files of PICTURE pixels, made up of smooth noise, with `ImageFiles`' own function."""
    noise = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(SEED))
    smooth = torch.nn.functional.interpolate(noise[None], size=PICTURE[::-1], mode="bicubic")[0].clamp(0, 1)
    content = io.BytesIO()
    Image.fromarray((255 * smooth).byte().permute(1, 2, 0).numpy()).save(content, "JPEG", quality=90)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"throughput-{os.getpid()}.jpg"
    path.write_bytes(content.getvalue())
    try:
        return 1 / least_s(lambda: _decoded(str(path), 224), 10 * times)
    finally:
        path.unlink()


def checked_s(times: int) -> dict[str, float]:
    """Seconds that the experiment's scoring pass and its epoch's steps take on the processes there are."""
    recipe = EXPERIMENTS[CHECKED]["short"]
    torch.manual_seed(SEED)
    model, split = make_model(recipe.model), made_up(recipe.data, CHECKED_BATCHES * recipe.batch_size)
    score_s = scoring_s(model, split, recipe.batch_size, times)
    step_s = steps_s(model, split, recipe.batch_size, 2 * times)
    return {"score_s": score_s, "step_s": step_s}


def as_rank(times: int) -> None:
    """What a process of torchrun does."""
    torch.set_num_threads(1)
    with _ranks.joined("cpu"):
        found = checked_s(times)
        if _ranks.num_ranks() > 1:
            for name, size in (("small_s", SMALL_BYTES), ("large_s", LARGE_BYTES)):
                buffer = torch.zeros(size // 4)
                torch.distributed.barrier()
                found[name] = least_s(lambda buffer=buffer: torch.distributed.all_reduce(buffer), 5 * times)
        if _ranks.rank() == 0:
            print(json.dumps(found))


def in_processes(ranks: int, times: int) -> dict[str, float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*command, __file__, "--as-rank", str(times)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of one and of two processes")
    parser.add_argument("--times", type=int, default=6, help="calls that are timed in a turn")
    parser.add_argument("--networks", type=int, default=len(NETWORKS), help="the first so many of the networks")
    parser.add_argument("--json", type=Path, default=ROOT / "results/throughput.json")
    parser.add_argument("--as-rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_rank:
        as_rank(args.as_rank)
        return
    torch.set_num_threads(1)
    turns = {1: [], 2: []}
    for _ in range(args.rounds):
        for ranks, found in turns.items():
            found.append(in_processes(ranks, args.times))
    one, two = ({key: min(turn[key] for turn in found) for key in found[0]} for found in turns.values())
    networks = {}
    for name, data, batch_size in NETWORKS[: args.networks]:
        networks[name] = row = network_rates(name, data, batch_size, args.times)
        times_ms = (f"{row[key]:.1f} ms {what}" for key, what in (("forward_ms", "forward"), ("score_ms", "scoring")))
        print(f"{name}: {', '.join(times_ms)}, {row['step_ms']:.1f} ms a step of {row['step_samples']}", flush=True)
    result = {
        "command": shlex.join(["python", "benchmarks/throughput.py", *sys.argv[1:]]),
        "seed": SEED,
        "threads": 1,
        "load_average": os.getloadavg(),
        "environment": environment(),
        "networks": networks,
        "decode_images_per_s": decode_images_per_s(args.times),
        "all_reduce": {
            # A ring of two: each message of a small one costs latency alone.
            "latency_s": two["small_s"] / 2,
            "bytes_per_s": LARGE_BYTES / max(two["large_s"] - two["small_s"], 1e-9),
        },
    }
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    result["check"] = check(args.json.parent, one, two)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in result["check"]["rows"].items():
        foreseen, took, off = row.values()
        print(f"{name}: foreseen {1e3 * foreseen:.1f} ms, took {1e3 * took:.1f} ms: {off:+.0f} %")


def check(results: Path, one: dict[str, float], two: dict[str, float]) -> dict[str, object]:
    """What the model foresees for two processes from the rates of one, beside what two took."""
    recipe = EXPERIMENTS[CHECKED]["short"]
    rates, n = cpu_rates(results, recipe.model), recipe.batch_size
    model = make_model(recipe.model)
    macs, operations = _counts(model, recipe.data, n)
    cost = count(model, torch.zeros(1, *SHAPES[recipe.data]))
    filters = sum(model.get_submodule(name).out_channels for name in recipe.limits)
    rows = {}
    for ranks, took in ((1, one), (2, two)):
        scoring_s = math.ceil(CHECKED_BATCHES / ranks) * rates.pass_s(n, macs, operations)
        scoring_s += rates.all_reduce_s(4 * CHECKED_BATCHES * filters, ranks)
        step_s = rates.step_s(n, macs, cost.parameters, ranks)
        for what, foreseen, measured in (("scoring", scoring_s, took["score_s"]), ("a step", step_s, took["step_s"])):
            off = 100 * (foreseen / measured - 1)
            rows[f"{what}, {ranks} process{'es' * (ranks > 1)}"] = {
                "foreseen_s": foreseen,
                "took_s": measured,
                "off_percent": off,
            }
    return {"experiment": CHECKED, "mini_batches": CHECKED_BATCHES, "rows": rows}


if __name__ == "__main__":
    main()
