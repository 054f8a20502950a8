"""Callers at once, in threads, processes and forks, and any number of threads: the same bits, and no endless wait."""
# SPDX-License-Identifier: MIT

import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import hrel_ext

THREADS = (1, 2, 3, 5)
TIMEOUT_S = 120


def data(num_samples=40, num_filters=13, map_shape=(3, 3), dtype=torch.float32):
    rng = torch.Generator().manual_seed(7)
    labels = torch.randint(4, (num_samples,), generator=rng)
    maps = torch.randn(num_samples, num_filters, *map_shape, generator=rng, dtype=torch.float64).relu()
    return (maps + labels[:, None, None, None]).to(dtype), labels


def collected(where):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU())
    batches = [(torch.randn(20, 1, 8, 8), torch.arange(20) % 3) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hrel_ext.IndistinguishableScoresWarning)  # noise
        scores = hrel_ext.collect(model, batches, where=where, permutations=3)["0"]
    return scores.per_batch, scores.widths, scores.null


def kernels(dtype):
    acts = data(dtype=dtype)[0]
    return hrel_ext.gram(acts.transpose(0, 1).flatten(2), sigma=3.0)  # (F, N, N)


def null(**options):
    made = hrel_ext.permutation_null(*data(), permutations=5, **options)
    return made.relevance, made.null


def selected(method, **options):
    made = hrel_ext.select_filters(data(num_filters=6), keep=3, method=method, sigma=5.0, **options)
    return made.kept, made.order, made.objective


CALLS = {
    **{
        f"relevance-{name}-{alpha}-{str(dtype).removeprefix('torch.')}": (
            lambda shape=shape, alpha=alpha, dtype=dtype: tuple(
                hrel_ext.relevance_terms(*data(map_shape=shape, dtype=dtype), sigma=3.0, alpha=alpha)
            )
        )
        for name, shape in (("short", (3, 3)), ("long", (16, 16)))
        for alpha, dtype in ((1.01, torch.float32), (2, torch.float32), (2.5, torch.float32), (1, torch.float64))
    },
    "relevance-label_sigma": lambda: (hrel_ext.relevance(*data(), label_sigma=1.0),),
    "relevance-differentiable": lambda: (hrel_ext.relevance(*data(), sigma=3.0, differentiable=True),),
    "kernel_width-layer": lambda: (hrel_ext.kernel_width(*data()),),
    "kernel_width-layer-large": lambda: (hrel_ext.kernel_width(*data(num_filters=64, map_shape=(16, 16))),),
    "kernel_width-filter": lambda: (hrel_ext.kernel_width(*data(), per_filter=True),),
    "kernel_width-float64": lambda: (hrel_ext.kernel_width(*data(dtype=torch.float64)),),
    "null": null,
    "null-label_sigma": lambda: null(sigma=3.0, label_sigma=1.0),
    "joint_relevance": lambda: (hrel_ext.joint_relevance(*data(), [1, 4, 5]),),
    "conditional_relevance": lambda: (hrel_ext.conditional_relevance(*data(), [2]),),
    "selection-forward": lambda: selected("forward"),
    "selection-backward": lambda: selected("backward", label_sigma=1.0),
    "gram": lambda: (kernels(torch.float32), kernels(torch.float64)),
    "distances": lambda: (hrel_ext.mean_distance(data()[0].flatten(1)), hrel_ext.median_distance(data()[0].flatten(1))),
    "entropy": lambda: (hrel_ext.entropy(kernels(torch.float32)), hrel_ext.entropy(kernels(torch.float64), alpha=1)),
    "total_correlation": lambda: (hrel_ext.total_correlation(*kernels(torch.float32)[:3]),),
    "collect-conv": lambda: collected("conv"),
    "collect-relu": lambda: collected("relu"),
}


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CALLS)
def test_the_number_of_threads_changes_no_bit(name, set_threads):
    results = []
    for count in THREADS:
        set_threads(count)
        results.append([tensor.tolist() for tensor in CALLS[name]()])
    assert all(result == results[0] for result in results)


def test_python_threads_at_once_get_the_same_bits_from_every_op(set_threads):
    """While one holds the GIL another computes: each op gives it back."""
    set_threads(2)
    # All but `collect`: a model in eval mode for one thread is so for all, and hooks see the maps of both.
    names = [name for name in CALLS if not name.startswith("collect")]
    expected = {name: [tensor.tolist() for tensor in CALLS[name]()] for name in names}
    with ThreadPoolExecutor(2) as pool:
        results = list(
            pool.map(lambda name: [tensor.tolist() for tensor in CALLS[name]()], names * 2, timeout=TIMEOUT_S)
        )
    assert results == [expected[name] for name in names * 2]


def test_two_threads_collect_from_two_models_at_once(set_threads):
    def scores(seed):
        rng = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        nn.init.normal_(model[0].weight, generator=rng), nn.init.zeros_(model[0].bias)
        batches = [(torch.randn(20, 1, 8, 8, generator=rng), torch.arange(20) % 3) for _ in range(3)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hrel_ext.IndistinguishableScoresWarning)
            return hrel_ext.collect(model, batches, where="relu")["0"].per_batch.tolist()

    set_threads(2)
    expected = [scores(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(scores, (1, 2) * 4, timeout=TIMEOUT_S)) == expected * 4


def test_two_processes_at_once_get_the_same_bits():
    code = (
        "import torch, hrel_ext; torch.set_num_threads(2); acts = torch.arange(4000.0).reshape(40, 10, 10).sin(); "
        "labels = torch.arange(40) % 4; print([hrel_ext.relevance(acts, labels).tolist() for _ in range(20)][-1])"
    )
    programs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        printed = [program.communicate(timeout=TIMEOUT_S)[0] for program in programs]
    finally:
        for program in programs:
            program.kill()  # nothing where it has ended
    acts, labels = torch.arange(4000.0).reshape(40, 10, 10).sin(), torch.arange(40) % 4
    assert printed == [f"{hrel_ext.relevance(acts, labels).tolist()}\n"] * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_fork_after_use_scores_in_the_child():
    """In a fresh process: PyTorch's OpenMP and our threads have run, and from the third fork on they run during it."""
    code = """
import os, sys, threading, torch, hrel_ext
torch.set_num_threads(2)
acts, labels = torch.arange(4000.0).reshape(40, 10, 10).sin(), torch.arange(40) % 4
from hrel_ext.testing import relevance_operands
operands = relevance_operands(acts, labels, 2.0, 1.01)
expected = torch.ops.hrel_ext.relevance(*operands)[0].tolist()
stop = threading.Event()
def go_on():
    while not stop.is_set():
        torch.ops.hrel_ext.relevance(*operands)
thread = threading.Thread(target=go_on, daemon=True)
for number in range(4):
    if number == 2:
        thread.start()
    child = os.fork()
    if not child:
        same = torch.ops.hrel_ext.relevance(*operands)[0].tolist() == expected  # on two threads of the child's own
        torch.set_num_threads(1)  # PyTorch's own loops would wait for workers that stayed with the parent
        whole = hrel_ext.relevance(acts, labels, sigma=2.0).shape == (10,)
        os._exit(0 if same and whole else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
print("done")
"""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.stdout == "done\n", (done.stderr, time.monotonic() - start)
