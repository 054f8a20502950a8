"""Runs CMake and puts the native module beside hrel_ext/__init__.py; everything else is in pyproject.toml.

Read from the environment and passed to CMake as they are: HREL_CUDA (ON, OFF, AUTO), CMAKE_CUDA_ARCHITECTURES.
HREL_CMAKE_DIR: the folder that CMake builds in, in place of setuptools' temporary one.
"""
# SPDX-License-Identifier: MIT

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PASSED_THROUGH = ("HREL_CUDA", "CMAKE_CUDA_ARCHITECTURES")


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(os.environ.get("HREL_CMAKE_DIR", self.build_temp)).resolve()
        (build / "CMakeCache.txt").unlink(missing_ok=True)  # choices of another time; what is compiled is kept
        options = [f"-D{name}={os.environ[name]}" for name in PASSED_THROUGH if name in os.environ]
        configure = ["cmake", "-G", "Ninja", "-S", str(Path(__file__).parent), "-B", str(build)]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        configure += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}", "-DCMAKE_BUILD_TYPE=Release", *options]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", "_C"], check=True)


setup(ext_modules=[Extension("hrel_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
