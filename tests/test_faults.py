"""No memory, no room, no right to write, a loader that fails, an interrupt: each is named, and nothing earlier lost."""
# SPDX-License-Identifier: MIT

import errno
import math
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import hrel_ext
from hrel_ext import _files, _ops
from hrel_ext.pruning import DamagedCheckpointWarning
from hrel_ext.pruning.checkpoint import write_json
from hrel_ext.pruning.resume import Checkpoints

PHYSICAL_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
HUGE = math.isqrt(PHYSICAL_BYTES // 2) + 1  # samples: half a matrix in float32 is more than there is


@pytest.mark.parametrize(
    ("call", "num_bytes"),
    (
        (lambda acts, labels: hrel_ext.relevance(acts, labels, label_sigma=2.0), 4 * HUGE**2),
        (lambda acts, labels: hrel_ext.joint_relevance(acts, labels, [0], sigma=1.0), 4 * HUGE**2),
        (lambda acts, labels: hrel_ext.relevance(acts, labels, sigma=1.0, differentiable=True), 8 * HUGE**2),
        (lambda acts, labels: hrel_ext.gram(acts[:, 0], sigma=1.0), 8 * HUGE**2),
        (lambda acts, labels: hrel_ext.median_distance(acts[:, 0]), 8 * HUGE**2),
    ),
)
def test_more_samples_than_memory_holds_are_refused_with_the_bytes_they_need(call, num_bytes):
    acts, labels = torch.zeros(()).expand(HUGE, 1, 1), torch.zeros(HUGE, dtype=torch.int64)
    message = f"need at least {num_bytes} bytes, more than the {PHYSICAL_BYTES} of cpu: take fewer samples"
    with pytest.raises(MemoryError, match=re.escape(message)):
        call(acts, labels)


@pytest.mark.parametrize(
    "call",
    (
        lambda acts, labels: hrel_ext.relevance(acts, labels, sigma=1.0),
        lambda acts, labels: hrel_ext.relevance_terms(acts, labels),
        lambda acts, labels: hrel_ext.kernel_width(acts, labels, per_filter=True),
        lambda acts, labels: hrel_ext.permutation_null(acts, labels, permutations=1, sigma=1.0),
    ),
)
def test_more_samples_than_memory_holds_are_refused_by_the_kernels(call):
    acts, labels = torch.zeros(()).expand(HUGE, 1, 1), torch.zeros(HUGE, dtype=torch.int64)
    with pytest.raises(MemoryError, match=r"^matrices of N x N need \d+ bytes in all") as refused:
        call(acts, labels)
    assert int(re.search(r"need (\d+) bytes", str(refused.value))[1]) >= 2 * HUGE**2


def test_the_route_through_pytorch_states_its_bytes(monkeypatch):
    properties = type("Properties", (), {"total_memory": 10_000})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    _ops.check_memory("a matrix", 10_000, torch.device("cuda"))
    with pytest.raises(
        MemoryError, match="a matrix need at least 10001 bytes, more than the 10000 of cuda: take fewer"
    ):
        _ops.check_memory("a matrix", 10_001, torch.device("cuda"))


@pytest.mark.parametrize("num_threads", (1, 2))
def test_the_kernels_state_the_scratch_of_every_thread_before_they_take_it(num_threads):
    n = int((PHYSICAL_BYTES / 3) ** 0.5)  # fits as half a matrix, not as what the kernels work on
    acts, labels = torch.zeros(()).expand(n, 64, 1), torch.zeros(n, dtype=torch.int64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        with pytest.raises(MemoryError) as caught:
            hrel_ext.relevance(acts, labels, sigma=1.0)
    finally:
        torch.set_num_threads(before)
    told = re.fullmatch(
        r"matrices of N x N need (\d+) bytes in all, (\d+) for each of (\d+) threads or slices, more than there are: "
        r"take fewer samples N, or fewer threads",
        str(caught.value),
    )
    total, each, count = map(int, told.groups())
    assert count == num_threads and total == each * count > PHYSICAL_BYTES
    assert hrel_ext.relevance(torch.eye(4), torch.arange(4), sigma=1.0).shape == (4,)  # the next call is not harmed


class Loader:
    """Mini-batches of which one is not what it should be."""

    def __init__(self, fault, at=2):
        self.fault, self.at = fault, at

    def __iter__(self):
        for number in range(4):
            inputs, labels = (
                torch.randn(12, 1, 6, 6, generator=torch.Generator().manual_seed(number)),
                torch.arange(12) % 3,
            )
            if number == self.at and self.fault == "raises":
                raise OSError(errno.EIO, "Input/output error")
            if number == self.at and self.fault == "nan":
                inputs[3] = torch.nan
            yield inputs, labels


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    (
        ("raises", RuntimeError, "batches failed to give batch 2: OSError: [Errno 5] Input/output error"),
        ("nan", ValueError, "batch 2, layer '0': acts must be finite"),
    ),
)
@pytest.mark.parametrize("where", ("conv", "relu"))
def test_a_loader_that_fails_midway_is_named_with_its_batch_and_leaves_the_model_alone(fault, error, message, where):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout())
    model[3].eval()
    modes, weights = [module.training for module in model.modules()], hrel_ext.weight_hash(model)
    with pytest.raises(error, match=re.escape(message)):
        hrel_ext.collect(model, Loader(fault), where=where)
    assert [module.training for module in model.modules()] == modes and hrel_ext.weight_hash(model) == weights
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled() and not torch.overrides._get_current_function_mode_stack()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hrel_ext.IndistinguishableScoresWarning)  # noise
        assert hrel_ext.collect(model, Loader(None), where=where)["0"].count == 4


@pytest.fixture
def scores():
    return hrel_ext.collect(nn.Sequential(nn.Conv2d(1, 4, 3)), Loader(None), sigma=4.0, permutations=2)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root to mount a file system")
def test_a_full_and_a_read_only_file_system_lose_nothing(scores, tmp_path):
    """In a mount namespace of its own, so that nothing of the machine is mounted over."""
    scores.save(tmp_path / "scores.safetensors")
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    if "unshare failed" in done.stderr or "mount" in done.stderr.split(":")[0]:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["full", "read-only"]


def on_a_small_file_system(folder):
    """Save what is there already on a tmpfs of 256 KiB, fill that, and save again; then make it read-only."""
    mount = os.path.join(folder, "disk")
    os.mkdir(mount)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", mount], check=True)
    scores = hrel_ext.Scores.load(os.path.join(folder, "scores.safetensors"))
    path = os.path.join(mount, "scores.safetensors")
    scores.save(path)
    store = Checkpoints(os.path.join(mount, "states"), {})
    store.save(lambda state: (state / "weights").write_bytes(bytes(1000)))
    before = open(path, "rb").read(), sorted(os.listdir(mount))
    with open(os.path.join(mount, "filler"), "wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    for code, name in ((errno.ENOSPC, "full"), (errno.EROFS, "read-only")):
        if name == "read-only":
            os.unlink(os.path.join(mount, "filler"))
            subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        with pytest.raises(OSError) as caught:
            scores.save(path)
        assert caught.value.errno == code, caught.value
        with pytest.raises(OSError, match=r"could not be written to .*, the one before it is kept: \[Errno"):
            store.save(lambda state: (state / "weights").write_bytes(bytes(100_000)))
        assert open(path, "rb").read() == before[0] and hrel_ext.Scores.load(path).header == scores.header
        assert store.latest().name == "000001"
        assert sorted(set(os.listdir(mount)) - {"filler"}) == before[1]  # nothing half-written stays
        print(name)


@pytest.mark.parametrize("size", (0, 1, 100, 4000))
def test_no_room_after_some_bytes_leaves_the_old_file_and_no_new_one(scores, tmp_path, monkeypatch, size):
    path = tmp_path / "scores.safetensors"
    scores.save(path)
    before = path.read_bytes()

    def full(unfinished, content):
        with open(unfinished, "wb") as file:
            file.write((content if isinstance(content, bytes) else content.encode())[:size])
        raise OSError(errno.ENOSPC, "No space left on device", str(unfinished))

    monkeypatch.setattr(type(path), "write_bytes", full)
    monkeypatch.setattr(type(path), "write_text", full)
    for write in (scores.save, lambda path: write_json(path, {"a": 1})):
        with pytest.raises(OSError, match="No space left on device"):
            write(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["scores.safetensors"]


def test_a_folder_that_is_a_file_is_named_and_the_file_kept(scores, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(NotADirectoryError, match=r"file/\.scores"):
        scores.save(tmp_path / "file/scores.safetensors")
    message = (
        r"a checkpoint could not be written to .*file/states, there is none before it: \[Errno 20\] Not a directory"
    )
    with pytest.raises(OSError, match=message):
        Checkpoints(tmp_path / "file/states", {}).save(lambda folder: None)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("stop", (KeyboardInterrupt, SystemExit))
def test_an_interrupt_while_a_file_is_written_leaves_the_old_one(tmp_path, stop):
    path = tmp_path / "file"
    path.write_text("old")

    def half(unfinished):
        unfinished.write_text("ha")
        raise stop

    with pytest.raises(stop):
        _files.write_atomically(path, half)
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["file"]


def test_an_interrupt_while_a_state_is_written_leaves_the_one_before_it(tmp_path):
    store = Checkpoints(tmp_path / "states", {})
    store.save(lambda folder: (folder / "weights").write_text("1"))

    def half(folder):
        (folder / "weights").write_text("2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save(half)
    assert (store.latest() / "weights").read_text() == "1"
    store.save(lambda folder: (folder / "weights").write_text("3"))
    assert (store.latest() / "weights").read_text() == "3" and not (tmp_path / "states/.unfinished").exists()


def test_a_state_must_hold_plain_files_of_its_own(tmp_path):
    (tmp_path / "secret").write_text("secret")
    for name in ("link", "folder", "pipe"):
        store = Checkpoints(tmp_path / name, {})
        store.save(lambda folder: (folder / "weights").write_text("secret"))
        place = tmp_path / name / "000001/weights"
        place.unlink()
        if name == "link":
            place.symlink_to(tmp_path / "secret")  # of the same content, so that no hash tells
        elif name == "folder":
            place.mkdir()
        else:
            os.mkfifo(place)  # which to open would wait for a writer
        with pytest.warns(DamagedCheckpointWarning, match="must name plain files, got 'weights'"):
            assert store.latest() is None


if __name__ == "__main__":
    on_a_small_file_system(sys.argv[1])
