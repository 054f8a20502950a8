"""An include or import that no arrow of docs/architecture.md allows fails; so does a module without arrows or tests."""
# SPDX-License-Identifier: MIT

import ast
import re
import shutil
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = (ROOT / "docs/architecture.md").read_text().split("```arrows\n")[1].split("```")[0]
ARROWS = {unit: set(targets.split(", ")) for unit, targets in re.findall(r"(\S+) -> ((?:\S+, )*\S+)", BLOCK)}


def uses(path: Path) -> Iterator[str]:
    if path.suffix in (".h", ".cuh", ".cpp", ".cu"):
        for bracket, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', path.read_text(), re.M):
            yield "std" if bracket == "<" and name.isidentifier() else name.split("/")[0]
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):  # absolute imports only (ruff TID252)
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            if head == "hrel_ext":
                unit = rest.split(".")[0]
                yield unit if unit in ARROWS or unit == "_C" else "__init__"  # a public name
            else:
                yield "std" if head in sys.stdlib_module_names else head


def violations(root: Path) -> Iterator[str]:
    sources = [p for p in (root / "csrc").rglob("*.*") if p.suffix in (".h", ".cuh", ".cpp", ".cu")]
    for path in sorted([*sources, *(root / "hrel_ext").rglob("*.py")]):
        unit = path.relative_to(root).parts[1].removesuffix(".py")
        if unit != "tests":
            allowed = ARROWS[unit] | {unit, "std"}  # a KeyError is a file that no arrow mentions
            yield from (f"{path.relative_to(root)} must not use {name}" for name in uses(path) if name not in allowed)


def test_every_include_and_import_follows_an_arrow():
    TopologicalSorter(ARROWS).prepare()  # raises CycleError if the arrows themselves go round
    assert list(violations(ROOT)) == []


def test_a_wrong_include_and_a_wrong_import_are_found(tmp_path):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(ROOT / "hrel_ext", tmp_path / "hrel_ext", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    with (tmp_path / "csrc/numerics/entropy.h").open("a") as header:
        header.write('#include "cpu/lanes.h"\n')
    with (tmp_path / "hrel_ext/reference.py").open("a") as module:
        module.write("from hrel_ext import _ops\n")
    found = ["csrc/numerics/entropy.h must not use cpu", "hrel_ext/reference.py must not use _ops"]
    assert list(violations(tmp_path)) == found


def test_a_file_that_no_arrow_mentions_is_found(tmp_path):
    (tmp_path / "hrel_ext").mkdir()
    (tmp_path / "hrel_ext/stray.py").touch()
    with pytest.raises(KeyError, match="stray"):
        list(violations(tmp_path))


# Module to the file of its tests, where that is not named after it; of a folder of experiments, one for all.
ELSEWHERE = {
    "_batch": "errors",
    "_files": "faults",
    "_rational": "ops",
    "experiment": "experiments",
    "integrations": "integrations",
    "label_entropy": "relevance",
    "pruning.cost": "plan",
    "pruning.importance": "criteria",
    "pruning.planning": "plan",
    "pruning.state": "cycles",
    "recipes": "recipes",
    "recording": "resume",
    "testing": "ops",
    "tracking": "cli",
    "zoo": "zoo",
}


def test_every_module_has_its_tests():
    package = ROOT / "hrel_ext"
    modules = [".".join(path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py")]
    modules = {name for name in modules if not name.endswith("__init__")}
    folders = {name.split(".")[0] for name in modules}
    assert set(ELSEWHERE) <= modules | folders
    for name in modules:
        folder, _, own = name.rpartition(".")
        tests = ELSEWHERE.get(name) or ELSEWHERE.get(folder) or own.removeprefix("_")
        assert (ROOT / f"tests/test_{tests}.py").is_file(), name
