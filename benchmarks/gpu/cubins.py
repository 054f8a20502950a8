"""The CUDA kernels compiled as the build does, without a GPU, and what ptxas reports of each. Needs nvcc."""
# SPDX-License-Identifier: MIT

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("entropies", "alignment")  # .cu
ARCHITECTURES = ("80", "90")


def find_tool(name: str, variable: str | None = None) -> Path | None:
    """Return a tool of the CUDA toolkit: named by the environment, on PATH, or in CUDA_HOME/bin."""
    if variable and (named := os.environ.get(variable)):
        return Path(named)
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    found = shutil.which(name) or shutil.which(name, path=str(home))
    return Path(found) if found else None


def nvcc_version() -> str:
    output = subprocess.run([_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", output)[1]


def build_flags() -> list[str]:
    """Return the options of CMakeLists.txt that change device code."""
    text = (ROOT / "CMakeLists.txt").read_text()
    found = re.findall(r"\$<\$<COMPILE_LANGUAGE:CUDA>:([^>]*)>", text)
    if len(found) != 1:
        raise ValueError(f"CMakeLists.txt must set the options of nvcc in one place, found {len(found)}")
    return [flag for flag in found[0].split() if not flag.startswith("--threads")]


@dataclass(frozen=True)
class Instance:
    """A kernel and its template arguments: an integer each, or the name of a type."""

    kernel: str
    arguments: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.kernel}<{', '.join(map(str, self.arguments))}>"

    @property
    def shape(self) -> "Shape | None":
        return Shape(*self.arguments) if len(self.arguments) == 7 else None

    @property
    def threads(self) -> int:
        return self.shape.teams * self.shape.team_threads if self.shape else 256  # kAlignmentThreads, kPackedThreads

    @property
    def blocks(self) -> int:
        """Blocks that one multiprocessor should hold."""
        return self.shape.blocks if self.shape else 1


@dataclass(frozen=True)
class Shape:
    """A KernelShape of csrc/cuda/kernel_shape.cuh."""

    thread_rows: int
    thread_columns: int
    rows: int
    columns: int
    teams: int
    blocks: int
    products: int

    @property
    def size(self) -> int:
        return self.thread_rows * self.rows

    @property
    def team_threads(self) -> int:
        return self.thread_rows * self.thread_columns

    @property
    def warps(self) -> int:
        """Warps of a team."""
        return self.team_threads // 32


def parse_name(mangled: str) -> Instance:
    """Return the instance that a mangled name of a kernel stands for."""
    start = re.match(r"_ZN4hrel4cuda(\d+)", mangled)
    if not start:
        raise ValueError(f"a kernel must be in the namespace hrel::cuda, got {mangled}")
    end = start.end() + int(start[1])
    kernel, rest = mangled[start.end() : end], mangled[end:]
    numbers = tuple(int(n) for n in re.findall(r"L[ib](\d+)E", rest))
    return Instance(kernel, numbers or ({"d": "double", "f": "float"}[rest[1]],))


@dataclass(frozen=True)
class Usage:
    """What ptxas reports of one kernel, of the functions it calls by their own names."""

    registers: int
    shared_bytes: int  # static
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int


def parse_report(report: str) -> tuple[dict[Instance, Usage], dict[str, Usage]]:
    """Return the usage of every kernel in a report of ptxas -v, and of every function that a kernel calls."""
    kernels: dict[Instance, Usage] = {}
    functions: dict[str, Usage] = {}
    entry: str | None = None
    frame: tuple[int, int, int] | None = None
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            entry = found[1]
        elif found := re.search(r"Function properties for (\w+)", line):
            name = found[1]
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if name == entry:
                frame = tuple(map(int, found.groups()))
            else:
                functions[name] = Usage(0, 0, *map(int, found.groups()))
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[parse_name(entry)] = Usage(int(found[1]), int(shared[1]) if shared else 0, *frame)
    return kernels, functions


@dataclass(frozen=True)
class Cubin:
    source: str
    architecture: str
    path: Path
    report: str  # of ptxas -v


def compile_cubin(source: str, architecture: str, folder: Path) -> Cubin:
    path = folder / f"{source}.{architecture}.cubin"
    options = [*build_flags(), f"-I{ROOT / 'csrc'}", '-DHREL_CUDA_ARCHITECTURES="none"', f"-arch=sm_{architecture}"]
    files = [str(ROOT / f"csrc/cuda/{source}.cu"), "-o", str(path)]
    command = [_nvcc(), *options, "-cubin", "-Xptxas", "-v", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc failed on {source}.cu for sm_{architecture}:\n{done.stderr}")
    return Cubin(source, architecture, path, done.stdout + done.stderr)


def compile_cubins(folder: Path, *, sources: Iterable[str] = SOURCES) -> list[Cubin]:
    """Compile the sources for all architectures, two at a time, the long one of each architecture first."""
    jobs = [(source, architecture, folder) for source in sources for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: compile_cubin(*job), jobs))


def _nvcc() -> str:
    found = find_tool("nvcc", "CUDACXX")
    if not found:
        raise FileNotFoundError("nvcc must be on PATH, in CUDA_HOME/bin or named by CUDACXX, found in none of them")
    return str(found)
