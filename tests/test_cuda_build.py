"""What nvcc and ptxas make of every kernel: no register spills, and as many blocks on a multiprocessor as intended."""
# SPDX-License-Identifier: MIT

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("80", "90")
FLAGS = ("-std=c++20", "-prec-div=false", "-prec-sqrt=false")  # those of CMakeLists.txt
REGISTERS = 65536  # of a multiprocessor, on both
INSTANCES = {
    "entropies_kernel": 3,
    "packed_entropies_kernel": 1,
    "distances_kernel": 8,  # four sizes, for the entropies and for the alignments
    "alignment_kernel": 1,
    "exact_entropies_kernel": 2,
}

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, which is not on PATH")


class Kernel(NamedTuple):
    name: str
    instance: str  # mangled
    registers: int
    stack_bytes: int
    spill_bytes: int

    @property
    def threads_and_blocks(self) -> tuple[int, int]:
        """Of KernelShape<BlockShape<rows, columns, ...>, teams, blocks>; 256 threads and one block without."""
        numbers = [int(n) for n in re.findall(r"Li(\d+)E", self.instance)]
        return (numbers[0] * numbers[1] * numbers[4], numbers[5]) if len(numbers) == 6 else (256, 1)


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, list[Kernel]]:
    folder = tmp_path_factory.mktemp("cubins")
    runs = {}
    for architecture in ARCHITECTURES:
        for source in ("entropies", "alignment"):
            command = [
                "nvcc",
                *FLAGS,
                "-O3",
                f"-arch=sm_{architecture}",
                "-Xptxas",
                "-v",
                "-cubin",
                "-I",
                ROOT / "csrc",
            ]
            command += ['-DHREL_CUDA_ARCHITECTURES=""', ROOT / f"csrc/cuda/{source}.cu"]
            command += ["-o", folder / f"{source}{architecture}.cubin"]
            runs[architecture, source] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for source in ("entropies", "alignment"):  # two at a time
            runs[architecture, source].wait()
    kernels: dict[str, list[Kernel]] = {architecture: [] for architecture in ARCHITECTURES}
    for (architecture, _), run in runs.items():
        report = run.stderr.read()
        assert run.returncode == 0, report
        for entry in report.split("Compiling entry function '")[1:]:
            mangled = entry.split("'")[0]
            stack, stores, loads = map(int, re.search(r"(\d+) bytes stack frame, (\d+) .*?, (\d+) ", entry).groups())
            registers = int(re.search(r"Used (\d+) registers", entry)[1])
            name = re.search(r"\d+([a-z_]+_kernel)I", mangled)[1]
            kernels[architecture].append(Kernel(name, mangled, registers, stack, stores + loads))
    return kernels


def test_the_flags_are_those_of_the_build():
    build = (ROOT / "CMakeLists.txt").read_text()
    assert all(flag in build for flag in FLAGS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_keeps_its_registers(reports, architecture):
    kernels = reports[architecture]
    assert Counter(kernel.name for kernel in kernels) == INSTANCES
    for kernel in kernels:
        assert kernel.spill_bytes == kernel.stack_bytes == 0, kernel
        threads, blocks = kernel.threads_and_blocks
        allocated = -(-kernel.registers // 8) * 8  # for each thread, in eights
        assert allocated * threads * blocks <= REGISTERS, kernel
