"""The steps of the relevance, timed one by one in C++ on one thread, against the least time that each could take.

The floor of a step is max(bytes / bandwidth, operations / multiply-add rate), both measured in the same run:
  distances     reading the maps once, and the N (N + 1) D operations of forming a Gram matrix as a product
  exp           nine multiply-adds for each of the N (N - 1) / 2 elements: a polynomial of seven, two for the range
  joint         the reductions of the class blocks, 4/3 n^3 operations each
  reduction     that of A to a band, 4/3 N^3 operations
  trace         two sweeps of N steps for each of ten poles, eight operations a step, a division counted as one
"""
# SPDX-License-Identifier: MIT

import json
import math

import drivers
import pytest
import torch

import hrel_ext
from hrel_ext.testing import LAYERS

SECONDS = 1.0  # for each layer


@pytest.fixture(scope="session")
def stage_times():
    """Runs csrc/tests/stage_times.cpp at the level in use and returns its JSON."""
    try:
        program = drivers.build(f"stage_times-{hrel_ext.build_info()['isa_level']}")
    except drivers.Unavailable as reason:
        pytest.skip(str(reason))
    return lambda *arguments: json.loads(drivers.run(str(program), *map(str, arguments)))


@pytest.mark.benchmark(group="ceilings")
@pytest.mark.parametrize("threads", sorted({1, torch.get_num_threads()}))
def test_ceilings(threads, stage_times, benchmark, record_row):
    record_row(**benchmark.pedantic(lambda: stage_times("ceilings", threads), rounds=1))


@pytest.fixture(scope="session")
def ceilings(stage_times) -> dict[str, float]:
    return stage_times("ceilings", 1)


@pytest.mark.benchmark(group="stages")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_stages(layer, sized, quick, stage_times, ceilings, benchmark, record_row):
    layer = sized(layer)
    shape = (layer.num_samples, layer.num_filters, math.prod(layer.map_shape))
    timed = benchmark.pedantic(lambda: stage_times("stages", *shape, 10, 0.05 if quick else SECONDS), rounds=1)
    floor_ms = {
        name: 1e3 * max(num_bytes / ceilings["bandwidth_bytes_per_s"], flops / ceilings["fma_flops_per_s"])
        for name, (num_bytes, flops) in work(*shape, timed["class_sizes"]).items()
    }
    record_row(
        layer=layer.name,
        shape=[layer.num_samples, layer.num_filters, *layer.map_shape],
        threads=1,
        passes=timed["passes"],
        whole_ms=1e3 * timed["whole"],
        stage_ms={name: 1e3 * seconds for name, seconds in timed["stages"].items()},
        floor_ms=floor_ms,
        ceilings=ceilings,
    )


def work(n: int, f: int, d: int, class_sizes: list[int]) -> dict[str, tuple[float, float]]:
    """Bytes from memory and operations of each step that no version can avoid; the rest of the data is in the cache."""
    return {
        "distances": (4 * n * f * d, f * n * (n + 1) * d),
        "exp": (0, f * n * (n - 1) / 2 * 2 * 9),
        "joint": (0, f * sum(4 / 3 * size**3 for size in class_sizes)),
        "reduction": (0, f * 4 / 3 * n**3),
        "trace": (0, f * 2 * 10 * n * 8),
    }
