"""Files that appear whole or not at all, and tensors with a checked header in one safetensors file."""
# SPDX-License-Identifier: MIT

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

import torch
from torch import Tensor

_Made = TypeVar("_Made")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place in one step."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@dataclass(frozen=True)
class TableFormat:
    """A kind of file: tensors by name, and a dataclass as JSON in the metadata.

    Attributes:
        what: it holds, with its article, for the errors: "a table of scores".
        key: of the JSON in the metadata.
        schema_version: of the JSON; a file of another one is refused.
        header: the dataclass, whose fields are str, int, float, dict, list or None.
    """

    what: str
    key: str
    schema_version: int
    header: type

    def save(self, path: str | os.PathLike[str], header: Any, tensors: Mapping[str, Tensor]) -> None:
        """Write one file, which appears whole or not at all; a file that is there is replaced.

        Raises:
            ImportError: safetensors is not installed.
        """
        try:
            from safetensors.torch import save
        except ImportError as error:
            raise self._needs_safetensors() from error
        text = json.dumps({"schema_version": self.schema_version, **asdict(header)}, allow_nan=False)
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={self.key: text})
        write_atomically(Path(path), lambda unfinished: unfinished.write_bytes(content))

    def load(self, path: str | os.PathLike[str], make: Callable[[Any, dict[str, Tensor]], _Made]) -> _Made:
        """Read a file that `save` wrote.

        Args:
            path: of the file.
            make: called with the header and the tensors; what it raises as ValueError is raised with the path.

        Returns:
            What ``make`` made.

        Raises:
            ImportError: safetensors is not installed.
            FileNotFoundError: there is no such file.
            ValueError: the file is cut off, something else, of another schema, or ``make`` refused it.
        """
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise self._needs_safetensors() from error
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # Copies, because the file is mapped and may be replaced later.
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} must be a whole safetensors file: {error}") from error
        if self.key not in metadata:
            raise ValueError(f"{path} must have {self.key!r} in its metadata, got {sorted(metadata)}")
        try:
            return make(self._header(json.loads(metadata[self.key])), tensors)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} must hold {self.what}: {error}") from error

    def _header(self, content: object) -> Any:
        if not isinstance(content, dict):
            raise ValueError(f"the header must be a JSON object, got {type(content).__name__}")
        schema = content.pop("schema_version", None)
        if schema != self.schema_version:
            raise ValueError(f"schema_version must be {self.schema_version}, got {schema!r}")
        expected = [field.name for field in fields(self.header)]
        if sorted(content) != sorted(expected):
            raise ValueError(f"the header must have {', '.join(expected)}, got {', '.join(content)}")
        for field in fields(self.header):
            choices = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
            kinds, value = [get_origin(choice) or choice for choice in choices], content[field.name]
            if type(value) not in kinds:
                names = " or ".join(kind.__name__ for kind in kinds)
                raise ValueError(f"{field.name} must be of type {names}, got {type(value).__name__}")
        return self.header(**content)

    def _needs_safetensors(self) -> ImportError:
        return ImportError(f"{self.what} needs safetensors: pip install 'hrel_ext[prune]'")


def check_tensors(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """Raise ValueError unless these are the tensors that a file should hold, of these dtypes, and finite."""
    if tensors.keys() != dtypes.keys():
        raise ValueError(f"its tensors must be {', '.join(sorted(dtypes))}, got {', '.join(sorted(tensors))}")
    for key, tensor in tensors.items():
        if tensor.dtype != dtypes[key] or not tensor.isfinite().all():
            name = str(dtypes[key]).removeprefix("torch.")
            raise ValueError(f"{key} must be {name} and finite, got {tensor.dtype}")
