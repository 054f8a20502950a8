"""Whatever bytes a file holds, its reader answers or refuses it: no crash, no pickle, nothing outside, no memory first.

HREL_FUZZ=SECONDS draws anew for about so many seconds for each reader; by default the same few mutations each time.
"""
# SPDX-License-Identifier: MIT

import ast
import copy
import hashlib
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import hrel_ext
from hrel_ext.pruning import DamagedCheckpointWarning, L2Norm, load_pruned, prune, save_pruned
from hrel_ext.pruning.resume import Checkpoints
from hrel_ext.report.information_plane import InformationPlane, PlaneHistory

SECONDS = float(os.environ.get("HREL_FUZZ", 0))
FEW = {"derandomize": True, "max_examples": 60, "database": None}
PROFILE = settings(
    deadline=None, suppress_health_check=list(HealthCheck), **({"max_examples": 500} if SECONDS else FEW)
)

# What a JSON value may be replaced by: other types, huge and negative numbers, ways out of the folder.
JSON_VALUES = (
    *(None, True, -1, 0, 1, 2**40, 2**70, 1e308, "", "x", "..", "../../x", "/etc/passwd", "a\0b", "."),
    *([], {}, [0], [[]], [2**40], [-1, 0], {"a": 1}, [1, 1]),
)


def network():
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 3))


def make(folder):
    """One file or folder for each reader."""
    torch.manual_seed(0)
    model = network()
    batches = [(torch.randn(12, 1, 8, 8), torch.arange(12) % 3) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hrel_ext.collect(model, batches, permutations=2).save(folder / "scores.safetensors")
        plane = InformationPlane(model, every=1)
        for inputs, labels in batches:
            plane.record(inputs, labels)
        plane.save(folder / "plane.safetensors")
    result = prune(model, batches, batches[0][0], limits={"0": 3}, shares={"0": 0.3}, criterion=L2Norm())
    save_pruned(folder / "pruned", model, result, input_shape=(1, 8, 8))
    for number in (1, 2):
        Checkpoints(folder / "states", {"a": 1}).save(
            lambda state, number=number: (state / "weights").write_text(str(number))
        )


def latest(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedCheckpointWarning)
        state = Checkpoints(path, {"a": 1}).latest()
    if state is not None:
        assert state.parent == path and (state / "weights").read_text() == str(int(state.name))
    return state


# Name to what is mutated, what is read, and by what.
READERS = {
    "scores": ("scores.safetensors", "scores.safetensors", hrel_ext.Scores.load),
    "plane": ("plane.safetensors", "plane.safetensors", PlaneHistory.load),
    "plan": ("pruned/plan.json", "pruned", lambda path: load_pruned(path, network)),
    "weights": ("pruned/model.safetensors", "pruned", lambda path: load_pruned(path, network)),
    "manifest": ("states/000002/manifest.json", "states", latest),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    make(folder)
    return folder


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*path, key))


def put(value, path, new):
    if not path:
        return new
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


def mutate_json(draw, text):
    value = json.loads(text)
    for _ in range(draw(st.integers(1, 2))):
        new = copy.deepcopy(draw(st.sampled_from(JSON_VALUES)))  # or it would be changed itself the next time
        value = put(value, draw(st.sampled_from(list(places(value)))), new)
    return json.dumps(value).encode()


def mutate_bytes(draw, content):
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(("flip", "cut", "insert", "repeat")))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=9))
        else:
            content[at:at] = content[at : at + draw(st.integers(1, 64))]
    return bytes(content)


def mutate(draw, content, is_json):
    """Other bytes, or another JSON value at some place, of the file or of the header of a safetensors file."""
    if draw(st.booleans()):
        return mutate_bytes(draw, content)
    if is_json:
        return mutate_json(draw, content)
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    inner = header.get("__metadata__", {})
    if inner and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(inner)))
        inner[key] = mutate_json(draw, inner[key]).decode()
        text = json.dumps(header).encode()
    else:
        text = mutate_json(draw, json.dumps(header))
    return struct.pack("<Q", draw(st.sampled_from((len(text),) * 4 + (0, 2**40, 2**63)))) + text + data


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused(name, whole, tmp_path):
    changed, read, reader = READERS[name]
    original = (whole / changed).read_bytes()
    damaged = tmp_path / "copy"
    shutil.copytree(whole, damaged)

    @PROFILE
    @given(st.data())
    def attempt(data):
        content = mutate(data.draw, original, changed.endswith(".json"))
        (damaged / changed).write_bytes(content)
        if name == "weights" and data.draw(st.booleans()):  # let them pass the hash
            plan = json.loads((whole / "pruned/plan.json").read_text())
            plan["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
            (damaged / "pruned/plan.json").write_text(json.dumps(plan))
        try:
            reader(damaged / read)
        except (ValueError, FileNotFoundError) as error:  # of a plan that names another file
            assert str(error)

    end = time.monotonic() + SECONDS
    while True:
        attempt()
        if time.monotonic() >= end:
            break
    assert reader(whole / read) is not None


def test_the_coverage_guided_target_finds_no_fault(tmp_path):
    pytest.importorskip("atheris", reason="atheris has wheels for Linux on x86-64 and Python 3.10 to 3.13")
    length = f"-max_total_time={SECONDS:.0f}" if SECONDS else "-runs=600"
    command = [sys.executable, Path(__file__).with_name("fuzz_readers.py"), "-seed=1", length]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300 + SECONDS)
    assert done.returncode == 0 and re.search(r"^Done \d{3,} runs", done.stderr, re.M), done.stderr[-3000:]


class Executed:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", READERS)
def test_a_pickle_is_never_loaded(name, whole, tmp_path):
    changed, read, reader = READERS[name]
    damaged = tmp_path / "copy"
    shutil.copytree(whole, damaged)
    made = tmp_path / "executed"
    (damaged / changed).write_bytes(pickle.dumps(Executed(made)))
    if name == "manifest":
        assert reader(damaged / read).name == "000001"
    else:
        with pytest.raises(ValueError, match="must"):
            reader(damaged / read)
    if read != "pruned":
        torch.save(Executed(made), damaged / "pruned/model.pt")  # what is beside the weights is not looked at
        load_pruned(damaged / "pruned", network)
    assert not made.exists()


@pytest.mark.parametrize("place", ("weights", "plan"))
@pytest.mark.parametrize("kind", ("link", "pipe"))
def test_a_pruned_network_lies_in_its_folder(kind, place, whole, tmp_path):
    shutil.copytree(whole / "pruned", tmp_path / "pruned")
    file = tmp_path / "pruned" / {"weights": "model.safetensors", "plan": "plan.json"}[place]
    file.rename(tmp_path / "elsewhere")
    if kind == "link":
        file.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(file)  # which to open would wait for a writer
    with pytest.raises(ValueError, match=r"must be a file, no link, folder or device"):
        load_pruned(tmp_path / "pruned", network)


def test_claims_of_2_to_the_40_elements_are_refused_with_little_memory(whole, tmp_path):
    """In a process that may have 1 GiB more than it has: what took memory for the claim would end in a MemoryError."""
    names = ("scores", "plane", "plan", "weights")
    for name in names:
        shutil.copytree(whole, tmp_path / name)
        changed = tmp_path / name / READERS[name][0]
        content = changed.read_bytes()
        if name == "plan":
            changed.write_text(json.dumps({**json.loads(content), "input_shape": [1, 1 << 20, 1 << 20]}))
            continue
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        tensor = next(entry for key, entry in header.items() if key != "__metadata__")
        tensor["shape"], tensor["data_offsets"] = [1 << 40], [0, 4 << 40]
        text = json.dumps(header).encode()
        changed.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
        if name == "weights":  # whose hash would be wrong otherwise
            plan = json.loads((tmp_path / name / "pruned/plan.json").read_text())
            plan["weights"]["sha256"] = hashlib.sha256(changed.read_bytes()).hexdigest()
            (tmp_path / name / "pruned/plan.json").write_text(json.dumps(plan))
    command = [sys.executable, __file__, str(tmp_path), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.split() == [f"refused-{name}" for name in names], done.stderr


def read_with_little_memory(folder, names):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
    for name in names:
        _, read, reader = READERS[name]
        try:
            reader(folder / name / read)
        except ValueError:
            print(f"refused-{name}")


def test_json_too_deep_to_parse_is_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    deep = "[" * 100_000 + "]" * 100_000
    (tmp_path / "copy/states/000002/manifest.json").write_text(deep)
    assert latest(tmp_path / "copy/states").name == "000001"
    (tmp_path / "copy/pruned/plan.json").write_text(deep)
    with pytest.raises(ValueError, match="must hold JSON"):
        load_pruned(tmp_path / "copy/pruned", network)
    from safetensors.torch import save

    content = save({"a": torch.zeros(1)}, metadata={"hrel_ext.scores": deep})
    (tmp_path / "copy/scores.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="must hold a table of scores"):
        hrel_ext.Scores.load(tmp_path / "copy/scores.safetensors")


def test_no_source_file_loads_a_pickle():
    seen = 0
    for file in Path(hrel_ext.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None), *(alias.name for alias in node.names)}
                assert not names & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, file
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                seen += 1
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", (file, node.lineno)
    assert seen  # those of the checkpoints


if __name__ == "__main__":
    read_with_little_memory(Path(sys.argv[1]), sys.argv[2:])
