"""Estimates of the CUDA kernels from their machine code: loops, cycles and rounds by hand, and what the page says."""
# SPDX-License-Identifier: MIT

import json

import cubins
import estimates
import pytest
import report
import sass


def instruction(address: int, text: str, stall: int = 1, wait: int = 0, result: int = 7) -> sass.Instruction:
    return sass.parse_instruction(address, text, stall << 41 | result << 46 | 7 << 49 | wait << 52)


LISTING = (  # two loops, one in the other; a branch around a load of half precision; code for warps that have diverged
    instruction(0x00, "MOV R0, RZ"),
    instruction(0x10, "ISETP.NE.AND P1, PT, R5, RZ, PT"),
    instruction(0x20, "@P1 BRA 0x50"),
    instruction(0x30, "LDG.E R3, desc[UR4][R2.64]", result=0),
    instruction(0x40, "BRA 0x60"),
    instruction(0x50, "LDG.E.U16 R3, desc[UR4][R2.64]", result=0),
    instruction(0x60, "FADD R4, R3, R4", stall=4, wait=1),
    instruction(0x70, "BRA.DIV UR4, 0xd0"),
    instruction(0x80, "FADD R4, R4, R4", stall=4),
    instruction(0x90, "@P0 BRA 0x60"),
    instruction(0xA0, "STS [R1], R4"),
    instruction(0xB0, "@!P0 BRA P2, 0x10"),
    instruction(0xC0, "EXIT"),
    instruction(0xD0, "WARPSYNC.COLLECTIVE R6, 0xe0"),
    instruction(0xE0, "BRA 0x80"),
)


def test_loops_are_found_and_counted_on_their_float32_path():
    graph = sass.Graph(LISTING)
    outer, inner = graph.loops
    assert outer.inner == [inner] and inner.outer is outer
    assert [x.address for x in inner.once()] == [0x60, 0x70, 0x80, 0x90]
    # Not by the load of half precision at 50, which is as long.
    assert [x.address for x in outer.once()] == [0x10, 0x20, 0x30, 0x40, 0x60, 0x70, 0x80, 0x90, 0xA0, 0xB0]
    assert [x.address for x in outer.once([inner])] == [0x10, 0x20, 0x30, 0x40, 0xA0, 0xB0]
    assert estimates.own_counts(outer)["FADD"] == 0 and estimates.own_counts(inner)["FADD"] == 2
    assert [x.address for x in graph.path(0, graph.blocks_with(sass.EXIT))][-2:] == [0xB0, 0xC0]
    with pytest.raises(LookupError, match="no way from 0 to where it should lead"):
        graph.path(0, graph.blocks_with(sass.EXIT), inner.body)


def test_ways_are_the_longest_or_the_shortest():
    graph = sass.Graph(LISTING)
    ends = graph.blocks_with(sass.EXIT)
    longest, shortest = (graph.path(0, ends, longest=which) for which in (True, False))
    assert 0x40 in {x.address for x in longest} and 0x50 in {x.address for x in shortest}
    assert len(longest) == len(shortest) + 1


def test_cycles_of_a_warp_wait_for_its_loads():
    loop = sass.Graph(LISTING).loops[0].once()
    latency = sass.LATENCY["LDG"]
    # Two instructions before the load; its result is waited for; then 4 + 1 + 4 + 1 and the last two.
    assert sass.cycles_alone(loop) == 2 + latency + 4 + 1 + 4 + 1 + 2
    assert sass.cycles_alone(loop, latency={**sass.LATENCY, "LDG": 40}) == 2 + 40 + 4 + 1 + 4 + 1 + 2
    assert sass.cycles_alone(loop, 2) == sass.cycles_alone(loop)  # nothing is under way at the end of a pass
    assert sass.work(loop, "90").issue == len(loop) == 10
    assert sass.busiest_pipe([x for x in loop if x.opcode == "FADD"] * 8, "80") == 2 * 16  # half the rate of sm_90
    assert sass.busiest_pipe([x for x in loop if x.opcode == "FADD"] * 8, "90") == 16


def test_rounds_of_blocks_by_hand():
    one, gpu = sass.Work(1000, 1000, 1500), estimates.H100
    us = 1e6 / gpu["clock_hz"]
    few = estimates.rounds(gpu["multiprocessors"], one, 2)
    assert (few.throughput, few.overlap, few.no_overlap) == pytest.approx((1000 * us, 1500 * us, 1500 * us))
    many = estimates.rounds(2 * gpu["multiprocessors"] + 1, one, 2)  # a full round, then a single block
    assert (many.throughput, many.overlap, many.no_overlap) == pytest.approx((3000 * us, 3500 * us, 4500 * us))


def test_splits_are_those_of_the_plan():
    assert [estimates.num_splits(p) for p in (1, 511, 512, 3136, 12544, 10**6)] == [1, 1, 2, 7, 25, 32]
    with pytest.raises(LookupError, match=r"csrc/cuda/plan\.h should give kNothing a number"):
        estimates.constant("kNothing", "plan.h")


def test_a_loop_that_is_not_there_is_named():
    kernel = estimates.Kernel(cubins.Instance("some_kernel", (1,)), LISTING)
    with pytest.raises(LookupError, match=r"some_kernel<1> must have one loop of the kind 'products', found 0"):
        kernel.find("products", lambda loop, own: own["HMMA"] > 0)


def test_page_says_that_nothing_of_an_estimate_was_measured():
    section = (report.ROOT / "docs/results.md").read_text().partition("### Estimates for the kernels")[2]
    assert section.count("**Not measured.**") == 1 and "have not run on a GPU" in " ".join(section.split())
    record = json.loads(estimates.OUT.read_text())
    assert record["measured"] is False and len(record["environment"]["commit"]) == 40  # of a clean tree
    assert [network["layers"] for network in record["networks"]] == [13, 53]
    for network in record["networks"]:
        assert network["floor_us"] < network["throughput_us"] <= network["overlap_us"] <= network["no_overlap_us"]


def test_estimates_give_way_to_a_newer_run(monkeypatch):
    older = {"environment": {"time": "2026-01-01T00:00:00Z"}}
    monkeypatch.setattr(report, "read", lambda root, path: older if path == report.GPU_ESTIMATES else None)
    assert report.read_estimates(report.ROOT) == older  # nothing was measured
    newer = {"environment": {"time": "2026-01-02T00:00:00Z"}}
    monkeypatch.setattr(report, "read_gpu", lambda root: newer)
    assert report.read_estimates(report.ROOT) is None
