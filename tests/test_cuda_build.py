"""The CUDA kernels as nvcc compiles them, without a GPU: every instance is there, nothing spills, the blocks fit."""
# SPDX-License-Identifier: MIT

import json
import os
import re
import subprocess

import cubins
import estimates
import pytest
import sass
from cubins import ARCHITECTURES, ROOT, Instance, Usage

SHAPES = (  # kernel_shape.cuh
    (8, 4, 4, 8, 4, 4, 1),
    (8, 8, 8, 8, 1, 6, 1),
    (16, 8, 8, 16, 1, 3, 1),
    (16, 8, 8, 16, 1, 4, 0),
    (16, 16, 16, 16, 1, 1, 0),
)
OF_SMALL_MAPS = SHAPES[3]
DISTANCES = {Instance("distances_kernel", shape) for shape in SHAPES if shape != OF_SMALL_MAPS}
EXPECTED = {
    "alignment": {Instance("alignment_kernel", (256,)), *DISTANCES},
    "entropies": {
        Instance("register_entropies_kernel", SHAPES[0]),
        *(Instance("band_entropies_kernel", shape) for shape in SHAPES[1:]),
        *(Instance("exact_entropies_kernel", (scalar,)) for scalar in ("float", "double")),
        *DISTANCES,
    },
}
REGISTERS = 65536  # of a multiprocessor, from sm_80 to sm_120
SHARED_BYTES = {"80": 164 * 1024, "90": 228 * 1024}  # of a multiprocessor
RESERVED_BYTES = 1024  # of shared memory, for each block


@pytest.fixture(scope="module")
def nvcc():
    found = cubins.find_tool("nvcc", "CUDACXX")
    if not found:
        pytest.skip("needs nvcc: on PATH, in CUDA_HOME/bin or named by CUDACXX")
    return str(found)


@pytest.fixture(scope="module")
def built(nvcc, tmp_path_factory):
    """Every source compiled for every architecture, once."""
    return cubins.compile_cubins(tmp_path_factory.mktemp("cubins"))


@pytest.fixture(params=ARCHITECTURES)
def reports(request, built):
    """What ptxas says of the kernels and of the functions that they call, by source, for one architecture."""
    return {c.source: cubins.parse_report(c.report) for c in built if c.architecture == request.param}


def registers_of_block(instance: Instance, usage: Usage) -> int:
    """As the hardware deals them out: 8 at a time to a thread, 256 at a time to a warp."""
    of_warp = 32 * -(-usage.registers // 8) * 8
    return instance.threads // 32 * -(-of_warp // 256) * 256


def test_every_kernel_instance_is_there_and_no_other(reports):
    assert {source: set(kernels) for source, (kernels, _) in reports.items()} == EXPECTED


def test_no_kernel_spills_registers_or_needs_a_stack(reports):
    for kernels, functions in reports.values():
        for name, usage in {**kernels, **functions}.items():
            # The stack shows a tile that has moved to local memory as a whole, which counts as no spill.
            assert (usage.stack_bytes, usage.spill_store_bytes, usage.spill_load_bytes) == (0, 0, 0), name


def test_registers_allow_the_blocks_that_a_multiprocessor_should_hold(reports):
    for kernels, _ in reports.values():
        for instance, usage in kernels.items():
            assert instance.blocks * registers_of_block(instance, usage) <= REGISTERS, (instance, usage)


def test_static_shared_memory_is_not_used(reports):
    for kernels, _ in reports.values():
        assert {usage.shared_bytes for usage in kernels.values()} == {0}


def test_the_recorded_estimates_are_of_these_kernels(built):
    try:
        sass.find_cuobjdump()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    recorded, counted = json.loads(estimates.OUT.read_text()), estimates.estimate(built)
    if recorded["environment"]["nvcc"] != counted["environment"]["nvcc"]:
        pytest.skip(f"the record is of nvcc {recorded['environment']['nvcc']}")
    for name, stage in recorded["stages"].items():  # a few instructions may change; python benchmarks/gpu/estimates.py
        assert counted["stages"][name] == pytest.approx(stage, rel=0.03), name


def test_shared_memory_allows_the_blocks_that_a_multiprocessor_should_hold(nvcc, tmp_path):
    source, program = tmp_path / "sizes.cu", tmp_path / "sizes"
    source.write_text("""
#include <cstdio>
#include "cuda/launches.cuh"
using namespace hrel::cuda;

template <class Kernel> void print() {
  std::size_t bytes = Kernel::kTeams * sizeof(DistanceStage<Kernel>);
  if constexpr (std::is_same_v<Kernel, Kernel32>) {
    bytes = std::max(bytes, Kernel::kTeams * sizeof(RegisterTeam<Kernel>));
  } else {
    bytes = std::max(bytes, shared_bytes_of_band<Kernel>(Kernel::kSize, Kernel::kProducts));
  }
  std::printf("%d %d %zu\\n", Kernel::kSize, Kernel::kBlocks, bytes);
}

int main() {
  print<Kernel32>(), print<Kernel64>(), print<Kernel128>(), print<Kernel128OfSmallMaps>(), print<Kernel256>();
}
""")
    command = [nvcc, *cubins.build_flags(), f"-I{ROOT / 'csrc'}", "-arch=sm_80", str(source), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    sizes = [tuple(map(int, line.split())) for line in lines]
    assert [size for size, _, _ in sizes] == [32, 64, 128, 128, 256]
    for size, blocks, shared_bytes in sizes:
        assert blocks * (shared_bytes + RESERVED_BYTES) <= SHARED_BYTES["90"], size
        assert min(blocks, 2) * (shared_bytes + RESERVED_BYTES) <= SHARED_BYTES["80"] or size == 256, size


def test_without_a_device_or_its_driver_there_are_no_kernels(nvcc, tmp_path):
    source, program = tmp_path / "status.cu", tmp_path / "status"
    source.write_text("""
#include <cstdio>
#include "cuda/device.h"
using namespace hrel::cuda;

__global__ void kernel() {}

void print(cudaError_t status) { std::printf("%d %d\\n", means_no_kernels(status), means_old_driver(status)); }

int main() {
  cudaError_t const here = status_of(kernel, 0);
  std::printf("%d\\n", means_no_kernels(here) && means_old_driver(here) == (here != cudaErrorNoDevice));
  print(cudaErrorInsufficientDriver), print(cudaErrorNoDevice), print(cudaErrorNoKernelImageForDevice);
  print(cudaErrorIllegalAddress), print(cudaSuccess);
}
""")
    command = [nvcc, *cubins.build_flags(), f"-I{ROOT / 'csrc'}", "-arch=sm_80", str(source), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True)
    no_device = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    lines = subprocess.run([program], check=True, capture_output=True, text=True, env=no_device).stdout.splitlines()
    assert lines == ["1", "1 1", "1 0", "1 0", "0 0", "0 0"]


def test_shapes_are_those_of_the_header():
    header = (ROOT / "csrc/cuda/kernel_shape.cuh").read_text()
    found = re.findall(r"KernelShape<BlockShape<(\d+), (\d+), (\d+), (\d+)>, (\d+), (\d+), (true|false)>;", header)
    assert tuple((*map(int, shape[:6]), int(shape[6] == "true")) for shape in found) == SHAPES


def test_flags_are_those_of_the_build():
    flags = cubins.build_flags()
    assert "-std=c++20" in flags and "-prec-div=false" in flags and not any(f.startswith("--threads") for f in flags)


def test_report_with_a_spill_and_a_stack_is_read():
    name = "_ZN4hrel4cuda16alignment_kernelILi256EEEvNS0_18AlignmentArgumentsE"
    kernels, functions = cubins.parse_report(f"""
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{name}' for 'sm_80'
ptxas info    : Function properties for {name}
    512 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 512 bytes cumulative stack size, 96 bytes smem, 440 bytes cmem[0]
ptxas info    : Function properties for __internal_accurate_pow
    4 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
""")
    assert kernels == {Instance("alignment_kernel", (256,)): Usage(255, 96, 512, 8, 16)}
    assert functions == {"__internal_accurate_pow": Usage(0, 0, 4, 0, 0)}
    assert registers_of_block(Instance("alignment_kernel", (256,)), Usage(255, 0, 0, 0, 0)) == 65536
    assert registers_of_block(Instance("alignment_kernel", (256,)), Usage(129, 0, 0, 0, 0)) == 256 * 136
