"""What runs on this machine, what does not, and what to do about it: ``hrel doctor``, or ``python -m hrel_ext.doctor``,
which needs no extra."""
# SPDX-License-Identifier: MIT

import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

from hrel_ext import _ops, reference
from hrel_ext.relevance import relevance

COMPILERS = ("c++", "g++", "clang++")
DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg")  # the last is that of WSL 2
DEVELOPERS = ("test", "docs", "kirigami", "lightning", "transformers")  # extras that nothing is missed without
LARGEST_ERROR = 1e-3  # bits; the tests allow 2e-5 and less, a broken kernel is off by far more


@dataclass(frozen=True)
class Gpu:
    """A CUDA device that torch can use."""

    name: str
    largest_num_samples: int  # N up to which compiled kernels run on it
    reason: str | None  # why none does
    fault: str | None  # of `check_relevance`


@dataclass(frozen=True)
class Facts:
    """What `findings` judges, as seen on this machine."""

    build: Mapping[str, Any]  # `hrel_ext.build_info`
    torch: str  # names its build, such as +cpu, which the package's version omits
    torch_cuda: str | None  # the CUDA it was built for
    fault: str | None  # of `check_relevance` on the CPU
    driver_file: str | None  # that an NVIDIA driver makes
    cuda_error: str  # what torch says where it can use no GPU, else ""
    gpus: Sequence[Gpu]
    libc: str
    compiler: str | None
    threads: int
    requirements: Sequence[str]  # of hrel_ext's metadata
    packages: Mapping[str, str | None]  # name to version, None where it is not installed


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    fault: str
    remedy: str
    prevents: bool  # work, rather than slowing it down or leaving a part out


def facts() -> Facts:
    """Look at this machine.

    Returns:
        What was seen; nothing is judged, and nothing that is found missing raises.
    """
    cuda_error, gpus = "", []
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        cuda_error = str(error).strip().splitlines()[0]
    else:
        for index in range(torch.cuda.device_count()):
            device = _ops._cuda_device(index)
            _, reason = _ops._route(1, device, _ops._architectures())
            fault = check_relevance(f"cuda:{index}")
            gpus.append(Gpu(torch.cuda.get_device_name(index), device.largest_num_samples, reason, fault))
    requirements = requires("hrel_ext") or []
    return Facts(
        build=_ops.build_info(),
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        fault=check_relevance("cpu"),
        driver_file=next((path for path in DRIVER_FILES if Path(path).exists()), None),
        cuda_error=cuda_error,
        gpus=gpus,
        libc=" ".join(platform.libc_ver()).strip() or platform.system(),
        compiler=next(filter(None, map(shutil.which, COMPILERS)), None),
        threads=torch.get_num_threads(),
        requirements=requirements,
        packages={name: _version(name) for name in dict.fromkeys(name for name, *_ in _parts(requirements))},
    )


def check_relevance(device: str) -> str | None:
    """Score three filters on a device and compare with plain PyTorch.

    Args:
        device: such as "cpu" or "cuda:0".

    Returns:
        What is wrong, None where nothing is.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 3  # (N,)
    acts = torch.rand(24, 3, 5, generator=generator) + labels[:, None, None] * torch.tensor([0.0, 0.3, 1.0])[:, None]
    expected = reference.relevance(acts.double(), labels, sigma=1.5)  # (F,)
    try:
        found = relevance(acts.to(device), labels.to(device), sigma=1.5).cpu().double()  # (F,)
    except (RuntimeError, ValueError) as error:  # of CUDA above all
        return f"a score on {device} failed: {str(error).strip().splitlines()[0]}"
    difference = (found - expected).abs().max().item()
    if difference <= LARGEST_ERROR:  # False for NaN
        return None
    return f"scores on {device} differ from plain PyTorch by {difference:.2g} bits, allowed are {LARGEST_ERROR:g}"


def findings(seen: Facts) -> list[Finding]:
    """Judge what was seen.

    Args:
        seen: by `facts`.

    Returns:
        What is not as it should be, each with a remedy; empty where all is well.
    """
    found = []
    if seen.fault:
        remedy = "build for this machine, `pip install --no-cache-dir .` in the source tree, and report it if it stays"
        found.append(Finding(seen.fault, remedy, prevents=True))
    levels = seen.build["isa_levels_built"]
    if "x86-64-v3" in levels and seen.build["isa_level"] not in levels[: levels.index("x86-64-v3") + 1]:
        fault = "the processor has no AVX2 (x86-64-v3), so that the slower kernels for any x86-64 run"
        remedy = "in a virtual machine, pass the processor of the host through; otherwise use a newer processor"
        found.append(Finding(fault, remedy, prevents=False))
    found += _gpu_findings(seen)
    if seen.compiler is None:
        fault = f"no C++ compiler ({', '.join(COMPILERS)}) is on PATH; what is installed runs without one"
        remedy = "to build from source, install GCC 11 or newer, or Clang 14 or newer, such as Debian's g++"
        found.append(Finding(fault, remedy, prevents=False))
    return [*found, *_package_findings(seen)]


def _gpu_findings(seen: Facts) -> Iterator[Finding]:
    for gpu in seen.gpus:
        if gpu.fault:
            remedy = "run on the CPU, and see whether plain torch works on this GPU: `torch.eye(3, device='cuda')`"
            yield Finding(f"{gpu.name}: {gpu.fault}", remedy, prevents=True)
        if gpu.reason:
            fault, _, remedy = gpu.reason.partition("; ")
            yield Finding(f"{gpu.name}: {fault}; plain PyTorch computes on it", remedy, prevents=False)
    if seen.gpus or seen.driver_file is None:  # no driver and no GPU: nothing is wrong
        return
    fault = f"there is an NVIDIA driver ({seen.driver_file}), but torch {seen.torch} uses no GPU: {seen.cuda_error}"
    if seen.torch_cuda is None:
        remedy = "install a torch that is built for CUDA"
    elif "too old" in seen.cuda_error:
        remedy = f"update the driver to one for CUDA {seen.torch_cuda}, or install a torch for an older CUDA"
    else:
        remedy = (
            "see that `nvidia-smi` lists the GPU, that CUDA_VISIBLE_DEVICES does not hide it and a container gets it"
        )
    yield Finding(fault, remedy, prevents=False)


def _package_findings(seen: Facts) -> Iterator[Finding]:
    """One finding for the requirements that are not met, and one for each extra of them."""
    lacking: dict[str, list[str]] = {}
    for name, specifiers, extra in _parts(seen.requirements):
        installed = seen.packages[name]
        if installed is None:
            lacking.setdefault(extra, []).append(f"{name} is missing")
        elif not _satisfies(installed, specifiers):
            lacking.setdefault(extra, []).append(f"{name} is {installed}, not {specifiers}")
    for extra, faults in lacking.items():
        where, target = (f"for the extra [{extra}], ", f"hrel_ext[{extra}]") if extra else ("", "hrel_ext")
        yield Finding(where + ", ".join(faults), f"pip install --upgrade '{target}'", prevents=not extra)


def _parts(requirements: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Name, specifiers and extra ("" for none) of each requirement of a user, without those on hrel_ext itself."""
    for text in requirements:
        name, specifiers = re.match(r"([\w.-]+)\s*([^;]*)", text).groups()
        extra = re.search(r"extra == [\"'](\w+)", text)
        extra = extra[1] if extra else ""
        if extra not in DEVELOPERS and name.replace("-", "_") != "hrel_ext":
            yield name, specifiers.strip(), extra


def _satisfies(installed: str, specifiers: str) -> bool:
    """Whether a version lies in a range of the forms ">=1.2" and "<2"."""
    for operator, bound in re.findall(r"(>=|<)\s*([\d.]+)", specifiers):
        if (_numbers(installed) >= _numbers(bound)) != (operator == ">="):
            return False
    return True


def _numbers(release: str) -> list[int]:
    numbers = [int(part) for part in re.match(r"[\d.]+\d|\d", release)[0].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:  # 2.0 is 2
        numbers.pop()
    return numbers


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe(seen: Facts) -> str:
    """What was seen, as a table of lines."""
    build, gpus = seen.build, [gpu.name for gpu in seen.gpus]
    rows = {
        "hrel_ext": build["version"],
        "python": sys.version.split()[0],
        "torch": f"{seen.torch}, built for {f'CUDA {seen.torch_cuda}' if seen.torch_cuda else 'CPUs'}",
        **{name: of or "not installed" for name, of in seen.packages.items() if name != "torch"},
        "C library": seen.libc,
        "compiler of the build": build["compiler"],
        "compiler on PATH": seen.compiler or "none",
        "ISA levels built": ", ".join(build["isa_levels_built"]),
        "ISA level in use": build["isa_level"],
        "threads": str(seen.threads),
        "CUDA kernels built": ", ".join(f"sm_{a}" for a in build["cuda_architectures"]) or "none",
        "GPUs": ", ".join(gpus) or f"none that torch can use ({seen.cuda_error})",
        "relevance on CPU tensors": f"compiled kernels, {build['isa_level']}",
    }
    for gpu in seen.gpus:
        rows[f"relevance on {gpu.name}"] = (
            f"compiled kernels up to {gpu.largest_num_samples} samples, above that plain PyTorch"
            if gpu.largest_num_samples
            else "plain PyTorch"
        )
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def doctor() -> int:
    """Print what was seen and found.

    Returns:
        The exit status: 1 if something prevents work, else 0.
    """
    seen = facts()
    found = findings(seen)
    print(describe(seen))
    print()
    for finding in found:
        print(f"{'FAULT' if finding.prevents else 'note '}  {finding.fault}\n       {finding.remedy}")
    if not found:
        print("nothing is amiss")
    return int(any(finding.prevents for finding in found))


if __name__ == "__main__":
    sys.exit(doctor())
