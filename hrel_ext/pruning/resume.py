"""States of unfinished work on disk, two generations of them, each checked before it is used."""
# SPDX-License-Identifier: MIT

import hashlib
import json
import os
import shutil
import stat
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from hrel_ext import _ranks

SCHEMA_VERSION = 1
GENERATIONS = 2
_MANIFEST = "manifest.json"


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint does not hold what was written; the one before it, or none, is used instead."""


class Checkpoints:
    """The last two states of one piece of work, each a folder of files with a manifest of their SHA-256.

    A state appears whole or not at all: it is written beside its place, which it takes in one step. Work that is killed
    at any moment leaves the states it had.

    Args:
        folder: of the states; made with the first one.
        settings: what decides the work, JSON values or numbers of NumPy; a state of other settings is refused.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, object]) -> None:
        self._folder = Path(folder)
        # As they come back. NumPy has numbers of its own.
        self._settings = json.loads(json.dumps(settings, default=float))

    def save(self, write: Callable[[Path], object]) -> None:
        """Add a state and drop the oldest; of several ranks of torch.distributed rank 0 does, and the others wait.

        Args:
            write: puts its files into the folder it is given.

        Raises:
            OSError: they cannot be written, say on a full disk; the states before are as they were.
        """
        _ranks.from_first(partial(self._save, write))

    def _save(self, write: Callable[[Path], object]) -> None:
        numbers = self._numbers()
        unfinished = self._folder / ".unfinished"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write(unfinished)
            files = {file.name: _digest(file) for file in sorted(unfinished.iterdir())}
            manifest = {"schema_version": SCHEMA_VERSION, "settings": self._settings, "files": files}
            (unfinished / _MANIFEST).write_text(json.dumps(manifest, indent=2))
            unfinished.rename(self._folder / f"{max(numbers, default=0) + 1:06d}")
        except Exception as error:  # each library has its own for a full disk
            shutil.rmtree(unfinished, ignore_errors=True)
            kept = "the one before it is kept" if numbers else "there is none before it"
            raise OSError(f"a checkpoint could not be written to {self._folder}, {kept}: {error}") from error
        for number in numbers[: len(numbers) + 1 - GENERATIONS]:
            shutil.rmtree(self._folder / f"{number:06d}")

    def latest(self) -> Path | None:
        """The folder of the newest state that is what was written; None if there is none. Rank 0 looks for all ranks.

        Raises:
            ValueError: it belongs to work with other settings.

        Warns:
            DamagedCheckpointWarning: for each newer one that is damaged.
        """
        return _ranks.from_first(self._latest)

    def _latest(self) -> Path | None:
        numbers = self._numbers()
        for number in reversed(numbers):
            folder = self._folder / f"{number:06d}"
            try:
                settings = _verified(folder)
            except (OSError, ValueError, RecursionError) as error:
                before = "the one before it is used" if number != numbers[0] else "there is none before it"
                warnings.warn(f"checkpoint {folder} is damaged, {before}: {error}", DamagedCheckpointWarning, 4)
                continue
            if settings != self._settings:
                raise ValueError(
                    f"checkpoint {self._folder} must be of the same work, got {_differences(settings, self._settings)}"
                )
            return folder
        return None

    def _numbers(self) -> list[int]:
        """Of the states that are there, ascending."""
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())


def _verified(folder: Path) -> Mapping[str, object]:
    """The settings of a state, or ValueError if a file is not what was written."""
    manifest = json.loads((folder / _MANIFEST).read_text())
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{_MANIFEST} must have schema_version {SCHEMA_VERSION}")
    if not all(isinstance(manifest.get(key), dict) for key in ("files", "settings")):
        raise ValueError(f"{_MANIFEST} must hold settings and files")
    for name, digest in manifest["files"].items():
        # Not what lies elsewhere, nor what to open may wait for ever.
        if Path(name).name != name or not stat.S_ISREG((folder / name).lstat().st_mode):
            raise ValueError(f"{_MANIFEST} must name plain files, got {name!r}")
        if _digest(folder / name) != digest:
            raise ValueError(f"sha256 of {name} is not that of {_MANIFEST}")
    return manifest["settings"]


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _differences(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {_brief(old.get(name))} there and {_brief(new.get(name))} here" for name in names)


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
