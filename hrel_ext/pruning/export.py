"""A network as a file that runs without this package, ONNX or PyTorch's pt2, kept only if it computes the same."""
# SPDX-License-Identifier: MIT

import copy
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from hrel_ext._files import write_atomically

TRACED_BATCH = 2  # sizes 0 and 1 would be taken for constants
COMPARED_BATCHES = (1, 5)  # of other sizes than the traced one, so that a size that became a constant is found
ONNX_DTYPES = (torch.float16, torch.float32, torch.float64)  # those that numpy has, which onnxruntime takes and gives
ONNX_LARGEST_BYTES = 2**31 - 1  # of one protocol buffer


class Agreement(NamedTuple):
    """How far an exported network is from the network.

    Attributes:
        difference: the largest |output of the file - output of the network|, in units of the output.
        tolerance: what was allowed at that output: the square root of the resolution of its dtype times the largest
            |output of the network|.
    """

    difference: float
    tolerance: float


def export_onnx(model: nn.Module, example_inputs: Tensor, path: str | os.PathLike[str]) -> Agreement:
    """Write a network as one ONNX file, its weights in it, after onnxruntime gave the same outputs from that file.

    The input is called ``input``, the output ``output`` (of several: ``output_0``, ``output_1``, ...), and the first
    dimension of both ``batch``, which may be any number.

    Args:
        model: the network, on any device; exported from a copy on the CPU, in eval mode.
        example_inputs: (N, ...), float16, float32 or float64; sets the shape of a sample. Its values are not used and
            do not get into the file.
        path: of the file; its folder is made if it is not there. A file of that name is replaced, and stays what it
            was after an error.

    Returns:
        How well the outputs agree for batches of 1 and of 5 samples of normal noise, seed 0.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError: a network that cannot be traced for any number of samples, has an operator that ONNX or onnxruntime
            lacks, or more than 2 GiB of weights; outputs that are not finite, or differ by more than the tolerance.

    Source: torch.onnx, the exporter on torch.export.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"export_onnx needs {error.name}: pip install 'hrel_ext[export]'") from error
    if example_inputs.dtype not in ONNX_DTYPES:
        raise ValueError(f"example_inputs must be float16, float32 or float64 for ONNX, got {example_inputs.dtype}")
    weight_bytes = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if weight_bytes > ONNX_LARGEST_BYTES:
        raise ValueError(f"model must have at most {ONNX_LARGEST_BYTES} bytes of weights for ONNX, got {weight_bytes}")
    program, cases = _traced(model, example_inputs)
    count = len(cases[0][1])
    names = ["output"] if count == 1 else [f"output_{number}" for number in range(count)]

    def write(unfinished: Path) -> Agreement:
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["input"],
                output_names=names,
                dynamic_shapes=({0: "batch"},),
            )
            unfinished.write_bytes(cast(torch.onnx.ONNXProgram, exported).model_proto.SerializeToString())
        except torch.onnx.OnnxExporterError as error:
            raise ValueError(f"model must be one that ONNX can express, got {_reason(error)}") from error
        try:
            session = onnxruntime.InferenceSession(unfinished, providers=["CPUExecutionProvider"])

            def run(inputs: Tensor) -> list[Tensor]:
                return [torch.from_numpy(array) for array in session.run(names, {"input": inputs.numpy()})]

            got = [run(inputs) for inputs, _ in cases]
        except Exception as error:  # onnxruntime raises a class of its own for every status, and no common one
            raise ValueError(f"model must be one that onnxruntime can run, got {_reason(error)}") from error
        return _compare(path, cases, got)

    return _write(path, write)


def export_pt2(model: nn.Module, example_inputs: Tensor, path: str | os.PathLike[str]) -> Agreement:
    """Write a network as a program of torch.export, after the program loaded from that file gave the same outputs.

    ``torch.export.load(path).module()`` runs it for any number of samples, without this package and without the code
    of the network. The input is called ``input``.

    Args:
        model: the network, on any device; exported from a copy on the CPU, in eval mode.
        example_inputs: (N, ...), of the dtype of the network; sets the shape of a sample. Its values are not used and
            do not get into the file.
        path: of the file, which must end in ``.pt2``; its folder is made if it is not there. A file of that name is
            replaced, and stays what it was after an error.

    Returns:
        How well the outputs agree for batches of 1 and of 5 samples of normal noise, seed 0.

    Raises:
        ValueError: a path with another ending; a network that cannot be traced for any number of samples; outputs that
            are not finite, or differ by more than the tolerance.

    Source: torch.export.
    """
    if Path(path).suffix != ".pt2":
        raise ValueError(f"path must end in .pt2, or torch.export.load does not take the file, got {os.fspath(path)!r}")
    program, cases = _traced(model, example_inputs)

    def write(unfinished: Path) -> Agreement:
        with unfinished.open("wb") as file:
            torch.export.save(program, file)
        with unfinished.open("rb") as file:
            loaded = torch.export.load(file).module()
        with torch.no_grad():
            return _compare(path, cases, [_tensors(loaded(inputs)) for inputs, _ in cases])

    return _write(path, write)


def _traced(
    model: nn.Module, example_inputs: Tensor
) -> tuple[torch.export.ExportedProgram, list[tuple[Tensor, list[Tensor]]]]:
    """The network as a program for any number of samples; fresh inputs, and what the network makes of them."""
    if not example_inputs.is_floating_point():
        raise ValueError(f"example_inputs must have a floating-point dtype, got {example_inputs.dtype}")
    model = copy.deepcopy(model).cpu().eval()
    generator = torch.Generator().manual_seed(0)
    traced, *fresh = (
        torch.randn(size, *example_inputs.shape[1:], generator=generator, dtype=example_inputs.dtype)
        for size in (TRACED_BATCH, *COMPARED_BATCHES)
    )
    with torch.no_grad():
        try:
            expected = [model(inputs) for inputs in fresh]
            program = torch.export.export(model, (traced,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        except Exception as error:  # whatever a network or the tracer raises
            raise ValueError(
                f"model must be one that torch.export can trace for any number of samples, got {_reason(error)}"
            ) from error
    cases = [(inputs, _tensors(outputs)) for inputs, outputs in zip(fresh, expected, strict=True)]
    for inputs, outputs in cases:
        if not all(output.isfinite().all() for output in outputs):
            raise ValueError(f"model must give finite outputs to be compared, got others for a batch of {len(inputs)}")
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # names the folders of this machine
    return program, cases


def _tensors(outputs: object) -> list[Tensor]:
    """The tensors that a network returned, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if not isinstance(outputs, list | tuple):
        raise ValueError(f"model must return tensors, alone or in tuples, lists and mappings, got {outputs!r}")
    return [tensor for output in outputs for tensor in _tensors(output)]


def _compare(
    path: str | os.PathLike[str], cases: Sequence[tuple[Tensor, list[Tensor]]], got: Sequence[Sequence[Tensor]]
) -> Agreement:
    """The worst agreement of all outputs, measured by its tolerance."""
    agreements = []
    for (inputs, expected), outputs in zip(cases, got, strict=True):
        for output, wanted in zip(outputs, expected, strict=True):
            batch = f"{os.fspath(path)} was not written: for a batch of {len(inputs)}"
            if (output.shape, output.dtype) != (wanted.shape, wanted.dtype):
                raise ValueError(
                    f"{batch} an output must be {wanted.dtype} of shape {tuple(wanted.shape)}, got {output.dtype} of "
                    f"shape {tuple(output.shape)}"
                )
            resolution = torch.finfo(wanted.dtype).eps if wanted.is_floating_point() else 0.0
            tolerance = resolution**0.5 * float(wanted.abs().max())
            difference = float((output.double() - wanted.double()).abs().max())
            if not difference <= tolerance:  # NaN is refused as well
                raise ValueError(
                    f"{batch} its outputs must differ from those of the model by at most {tolerance:.3g}, got "
                    f"{difference:.3g}"
                )
            agreements.append(Agreement(difference, tolerance))
    return max(agreements, key=lambda agreement: agreement.difference / (agreement.tolerance or 1))


def _write(path: str | os.PathLike[str], write: Callable[[Path], Agreement]) -> Agreement:
    """Let ``write`` fill and check a file, which then appears at ``path``."""
    path, agreements = Path(path), []
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda unfinished: agreements.append(write(unfinished)))
    return agreements[0]


def _reason(error: BaseException) -> str:
    """The first cause of an error on one line: exporters wrap it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 300)}"
