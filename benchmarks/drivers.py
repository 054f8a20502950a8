"""Builds and runs the C++ programs of csrc/tests that time and count: stage_times and instruction_driver."""
# SPDX-License-Identifier: MIT

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))  # pip's CMake, too


class Unavailable(RuntimeError):
    """What a program needs is not on this machine; the message says what."""


def build(target: str) -> Path:
    """Build a program in the build folder of `make test` and return its path.

    Raises:
        Unavailable: without CMake or Ninja, and where the target does not exist on this kind of processor.
        RuntimeError: with the compiler's output, where it does not compile.
    """
    for tool in ("cmake", "ninja"):
        if shutil.which(tool, path=TOOLS) is None:
            raise Unavailable(f"{target} is built with {tool}, which is not on PATH")
    if os.uname().machine not in ("x86_64", "amd64"):
        raise Unavailable(f"{target} exists for x86-64 only, this is {os.uname().machine}")
    folder = Path(os.environ.get("HREL_BUILD_DIR", ROOT / "build")) / "ctest"
    ninja = f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=TOOLS)}"  # pip's own, of the build before, is gone
    options = ("-DHREL_PYTHON=OFF", "-DHREL_TESTS=ON", "-DHREL_CUDA=OFF", ninja)
    run("cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), *options)
    run("cmake", "--build", str(folder), "--target", target)
    return folder / target


def run(*command: str) -> str:
    """Run a command and return what it prints; RuntimeError with its output where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": TOOLS})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
