# Kernels of csrc/bindings/module.cpp: addresses as int, extents and strides (in elements) as (N, F, D).
from collections.abc import Sequence

compiler: str

class Rational:
    def __init__(self, *, powers: Sequence[float], poles: Sequence[float], weights: Sequence[float]) -> None: ...

def relevance_cpu_float32(
    *,
    acts_ptr: int,
    acts_shape: tuple[int, int, int],
    acts_strides: tuple[int, int, int],
    order_ptr: int,
    class_offsets_ptr: int,
    label_gram_ptr: int,
    sigma_ptr: int,
    alpha: float,
    rational: Rational | None,
    num_threads: int,
    entropy_ptr: int,
    joint_entropy_ptr: int,
) -> None: ...

relevance_cpu_float64 = relevance_cpu_float32

def kernel_alignment_cpu_float32(
    *,
    acts_ptr: int,
    acts_shape: tuple[int, int, int],
    acts_strides: tuple[int, int, int],
    order_ptr: int,
    class_offsets_ptr: int,
    label_gram_ptr: int,
    multiples_ptr: int,
    num_widths: int,
    per_filter: bool,
    num_threads: int,
    mean_distance_ptr: int,
    alignment_ptr: int,
) -> None: ...

kernel_alignment_cpu_float64 = kernel_alignment_cpu_float32

def isa_level() -> str: ...
def isa_levels_built() -> list[str]: ...
def cuda_architectures() -> str: ...
