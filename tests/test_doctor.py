"""`hrel doctor`: every fault that it knows, in facts made up for it, with its remedy and the exit status."""
# SPDX-License-Identifier: MIT

import dataclasses
import subprocess
import sys
from importlib.metadata import requires

import pytest
import torch

from hrel_ext import _ops, doctor
from hrel_ext.doctor import Facts, Finding, Gpu, check_relevance, describe, facts, findings

WELL = Facts(
    build={
        "version": "0.1.0",
        "isa_level": "x86-64-v4",
        "isa_levels_built": ["x86-64-v4", "x86-64-v3", "x86-64"],
        "cuda_architectures": ["80", "90"],
        "compiler": "GNU 12.2.0",
    },
    torch="2.14.1+cu130",
    torch_cuda="13.0",
    fault=None,
    driver_file="/dev/nvidia0",
    cuda_error="",
    gpus=[Gpu("H100", 256, None, None)],
    libc="glibc 2.36",
    compiler="/usr/bin/g++",
    threads=2,
    requirements=[
        "torch>=2.4",
        "numpy>=1.26",
        "torch-pruning<1.7,>=1.6; extra == 'prune'",
        'accelerate<2,>=1.0; extra == "prune"',
        'ruff<1,>=0.14; extra == "test"',
        'hrel_ext[cli,prune]; extra == "all"',
    ],
    packages={"torch": "2.14.1", "numpy": "2.4.6", "torch-pruning": "1.6.1", "accelerate": "1.15.0"},
)
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by ..."


def with_build(**changes) -> Facts:
    return dataclasses.replace(WELL, build={**WELL.build, **changes})


def with_packages(**changes) -> Facts:
    return dataclasses.replace(WELL, packages={**WELL.packages, **{k.replace("_", "-"): v for k, v in changes.items()}})


def without_gpu(**changes) -> Facts:
    return dataclasses.replace(WELL, gpus=[], **changes)


def test_a_machine_without_a_fault_has_no_finding():
    assert findings(WELL) == []
    assert findings(with_build(isa_level="x86-64-v3")) == []  # AVX-512 is not needed
    assert findings(with_build(isa_levels_built=["aarch64"], isa_level="aarch64")) == []
    assert findings(without_gpu(driver_file=None, cuda_error="Found no NVIDIA driver on your system.")) == []


@pytest.mark.parametrize(
    ("seen", "finding"),
    (
        (
            dataclasses.replace(WELL, fault="scores on cpu differ from plain PyTorch by 0.5 bits, allowed are 0.001"),
            Finding(
                "scores on cpu differ from plain PyTorch by 0.5 bits, allowed are 0.001",
                "build for this machine, `pip install --no-cache-dir .` in the source tree, and report it if it stays",
                True,
            ),
        ),
        (
            with_build(isa_level="x86-64"),
            Finding(
                "the processor has no AVX2 (x86-64-v3), so that the slower kernels for any x86-64 run",
                "in a virtual machine, pass the processor of the host through; otherwise use a newer processor",
                False,
            ),
        ),
        (
            dataclasses.replace(WELL, compiler=None),
            Finding(
                "no C++ compiler (c++, g++, clang++) is on PATH; what is installed runs without one",
                "to build from source, install GCC 11 or newer, or Clang 14 or newer, such as Debian's g++",
                False,
            ),
        ),
        (
            without_gpu(cuda_error=OLD_DRIVER),
            Finding(
                f"there is an NVIDIA driver (/dev/nvidia0), but torch 2.14.1+cu130 uses no GPU: {OLD_DRIVER}",
                "update the driver to one for CUDA 13.0, or install a torch for an older CUDA",
                False,
            ),
        ),
        (
            without_gpu(cuda_error="No CUDA GPUs are available"),
            Finding(
                "there is an NVIDIA driver (/dev/nvidia0), but torch 2.14.1+cu130 uses no GPU: No CUDA GPUs are "
                "available",
                "see that `nvidia-smi` lists the GPU, that CUDA_VISIBLE_DEVICES does not hide it and a container gets "
                "it",
                False,
            ),
        ),
        (
            without_gpu(torch="2.13.0+cpu", torch_cuda=None, cuda_error="Torch not compiled with CUDA enabled"),
            Finding(
                "there is an NVIDIA driver (/dev/nvidia0), but torch 2.13.0+cpu uses no GPU: Torch not compiled with "
                "CUDA enabled",
                "install a torch that is built for CUDA",
                False,
            ),
        ),
        (
            dataclasses.replace(WELL, gpus=[Gpu("H100", 256, None, "a score on cuda:0 failed: CUDA: a launch failed")]),
            Finding(
                "H100: a score on cuda:0 failed: CUDA: a launch failed",
                "run on the CPU, and see whether plain torch works on this GPU: `torch.eye(3, device='cuda')`",
                True,
            ),
        ),
        (
            with_packages(torch="2.3.1"),
            Finding("torch is 2.3.1, not >=2.4", "pip install --upgrade 'hrel_ext'", True),
        ),
        (
            with_packages(torch_pruning=None, accelerate="2.0.1"),
            Finding(
                "for the extra [prune], torch-pruning is missing, accelerate is 2.0.1, not <2,>=1.0",
                "pip install --upgrade 'hrel_ext[prune]'",
                False,
            ),
        ),
    ),
    ids=lambda value: value.fault.replace(" ", "_")[:40] if isinstance(value, Finding) else "",
)
def test_a_fault_is_found_with_its_remedy(seen, finding):
    assert findings(seen) == [finding]


@pytest.mark.parametrize(
    ("device", "architectures", "fault", "remedy"),
    (
        (
            _ops._CudaDevice(0, (9, 0), ""),
            (),
            "this build of hrel_ext holds no CUDA kernels",
            "build them with `HREL_CUDA=ON pip install .`",
        ),
        (
            _ops._CudaDevice(0, (9, 0), "13.0"),
            ("80", "90"),
            "the driver is too old for the CUDA runtime of this build, 13.0",
            "update the driver, or build with an older toolkit: `HREL_CUDA=ON CUDACXX=<its nvcc> pip install .`",
        ),
        (
            _ops._CudaDevice(0, (7, 5), ""),
            ("80", "90"),
            "the CUDA kernels of this build are for sm_80, sm_90 and do not run on this device, sm_75",
            "build them with `HREL_CUDA=ON CMAKE_CUDA_ARCHITECTURES=75 pip install .`",
        ),
    ),
)
def test_a_gpu_without_compiled_kernels_is_explained_as_the_ops_do(device, architectures, fault, remedy):
    _, reason = _ops._route(1, device, architectures)
    seen = dataclasses.replace(WELL, gpus=[Gpu("T4", 0, reason, None)])
    assert findings(seen) == [Finding(f"T4: {fault}; plain PyTorch computes on it", remedy, False)]
    assert "relevance on T4           plain PyTorch" in describe(seen)


def test_versions_are_compared_as_numbers():
    for installed, is_well in (("1.6", True), ("1.10.0", False), ("1.6.1+cpu", True), ("1.7.0", False), ("1.5", False)):
        assert (findings(with_packages(torch_pruning=installed)) == []) == is_well, installed
    for installed, is_well in (("2", False), ("2.4.0a0+git", True), ("2.10.0", True), ("3.0", True)):
        assert (findings(with_packages(torch=installed)) == []) == is_well, installed


def test_the_requirements_of_the_package_are_understood_and_met_here():
    seen = facts()
    assert seen.requirements == requires("hrel_ext")
    names = {"torch", "numpy", "torch-pruning", "safetensors", "accelerate", "typer", "rich", "matplotlib", "onnx"}
    assert names <= set(seen.packages) and not {"hrel_ext", "hrel-ext", "ruff", "pytest"} & set(seen.packages)
    assert not any(finding.prevents for finding in findings(seen))


def test_a_wrong_score_and_a_failing_one_are_told(monkeypatch):
    assert check_relevance("cpu") is None
    monkeypatch.setattr(doctor, "relevance", lambda acts, *_, **__: torch.full((3,), torch.nan))
    assert check_relevance("cpu") == "scores on cpu differ from plain PyTorch by nan bits, allowed are 0.001"

    def fail(*_, **__):
        raise RuntimeError("CUDA: a launch failed: out of memory\nwith more lines")

    monkeypatch.setattr(doctor, "relevance", fail)
    assert check_relevance("cpu") == "a score on cpu failed: CUDA: a launch failed: out of memory"


def test_the_status_is_1_only_for_what_prevents_work(monkeypatch, capsys):
    for seen, status, text in (
        (WELL, 0, "\nnothing is amiss\n"),
        (
            with_packages(accelerate=None),
            0,
            "\nnote   for the extra [prune], accelerate is missing\n       pip install",
        ),
        (with_packages(torch=None), 1, "\nFAULT  torch is missing\n       pip install --upgrade 'hrel_ext'\n"),
    ):
        monkeypatch.setattr(doctor, "facts", lambda seen=seen: seen)
        assert doctor.doctor() == status
        out = capsys.readouterr().out
        assert text in out and "ISA level in use" in out and "up to 256 samples, above that plain PyTorch" in out


def test_the_core_alone_runs_it():
    missing = ("typer", "rich", "torch_pruning", "accelerate", "safetensors", "torchvision", "sklearn", "matplotlib")
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({missing})); runpy.run_module('hrel_ext.doctor', "
    code += "run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert torch.__version__ in done.stdout


def test_a_native_module_that_does_not_load_says_why_and_what_to_do(tmp_path, monkeypatch):
    build = "run `pip install .` in the source tree (`pip install -e .` to develop)"
    cause = "cannot import name '_C' from partially initialized module 'hrel_ext'"
    told = f"hrel_ext is not built: its native module hrel_ext._C is missing or does not load ({cause}); {build}"
    assert _ops._why_not_built(cause, tmp_path) == told
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
    cause = "/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.34' not found (required by /x/hrel_ext/_C.so)"
    told = (
        "hrel_ext is not built for this system: its native module needs GLIBC_2.34, and the C or C++ library here is "
    )
    assert _ops._why_not_built(cause, tmp_path) == f"{told}older (glibc 2.31); {build}"
    (tmp_path / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    monkeypatch.setattr("sysconfig.get_config_var", lambda _: ".cpython-310-x86_64-linux-gnu.so")
    monkeypatch.setattr("shutil.which", lambda _: None)
    told = "hrel_ext is not built for this Python: there is _C.cpython-39-x86_64-linux-gnu.so, and no "
    told += "_C.cpython-310-x86_64-linux-gnu.so; install a C++ compiler (GCC 11 or newer, or Clang 14 or newer), then "
    assert _ops._why_not_built("cannot import name '_C'", tmp_path) == told + build
