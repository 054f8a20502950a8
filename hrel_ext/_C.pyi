# csrc/bindings/module.cpp: addresses as int, extents and strides (in elements) as (N, F, D) or (B, N, N). A problem is
# made of its operands and run on the device they lie on; it keeps no tensor alive.
from collections.abc import Sequence

compiler: str

class EntropyOrder:
    def __init__(
        self, *, alpha: float, powers: Sequence[float], poles: Sequence[float], weights: Sequence[float]
    ) -> None: ...

class _OnCuda:
    def cuda_workspace_bytes(self, *, device: int) -> int: ...
    def run_on_cuda(self, *, workspace_ptr: int, workspace_bytes: int, device: int, stream_ptr: int) -> None: ...

class _OnCpu:
    def run_on_cpu(self, *, num_threads: int) -> None: ...

class _Relevance:
    def __init__(
        self,
        *,
        acts_ptr: int,
        acts_shape: tuple[int, ...],
        acts_strides: tuple[int, ...],
        order_ptr: int,
        class_offsets_ptr: int,
        label_gram_ptr: int,
        sigma_ptr: int,
        entropy_order: EntropyOrder,
        entropy_ptr: int,
        joint_entropy_ptr: int,
    ) -> None: ...

class RelevanceProblem_float16(_Relevance, _OnCuda): ...
class RelevanceProblem_bfloat16(_Relevance, _OnCuda): ...
class RelevanceProblem_float32(_Relevance, _OnCpu, _OnCuda): ...
class RelevanceProblem_float64(_Relevance, _OnCpu, _OnCuda): ...

class _Alignment:
    def __init__(
        self,
        *,
        acts_ptr: int,
        acts_shape: tuple[int, ...],
        acts_strides: tuple[int, ...],
        order_ptr: int,
        class_offsets_ptr: int,
        label_gram_ptr: int,
        multiples_ptr: int,
        num_widths: int,
        per_filter: bool,
        mean_distance_ptr: int,
        alignment_ptr: int,
    ) -> None: ...

class AlignmentProblem_float16(_Alignment, _OnCuda): ...
class AlignmentProblem_bfloat16(_Alignment, _OnCuda): ...
class AlignmentProblem_float32(_Alignment, _OnCpu, _OnCuda): ...
class AlignmentProblem_float64(_Alignment, _OnCpu): ...

class TermsProblem_float32:
    def __init__(
        self,
        *,
        acts_ptr: int,
        acts_shape: tuple[int, ...],
        acts_strides: tuple[int, ...],
        labels_ptr: int,
        sigma_ptr: int,
        entropy_order: EntropyOrder,
        relevance_ptr: int,
        entropy_ptr: int,
        joint_entropy_ptr: int,
        label_entropy_ptr: int,
    ) -> None: ...
    def run_on_cpu(self, *, num_threads: int) -> bool: ...

class TermsProblem_float64(TermsProblem_float32): ...

class WidthProblem_float32:
    def __init__(
        self,
        *,
        acts_ptr: int,
        acts_shape: tuple[int, ...],
        acts_strides: tuple[int, ...],
        labels_ptr: int,
        multiples_ptr: int,
        num_widths: int,
        per_filter: bool,
        mean_distance_ptr: int,
        width_ptr: int,
    ) -> None: ...
    def run_on_cpu(self, *, num_threads: int) -> bool: ...

class WidthProblem_float64(WidthProblem_float32): ...

class PermutationProblem_float32(_OnCpu):
    def __init__(
        self,
        *,
        acts_ptr: int,
        acts_shape: tuple[int, ...],
        acts_strides: tuple[int, ...],
        order_ptr: int,
        class_offsets_ptr: int,
        sigma_ptr: int,
        entropy_order: EntropyOrder,
        permutations_ptr: int,
        num_permutations: int,
        joint_entropy_ptr: int,
    ) -> None: ...

class PermutationProblem_float64(PermutationProblem_float32): ...

class EntropyProblem_float32(_OnCpu, _OnCuda):
    def __init__(
        self,
        *,
        gram_ptr: int,
        gram_shape: tuple[int, ...],
        gram_strides: tuple[int, ...],
        entropy_order: EntropyOrder,
        entropy_ptr: int,
    ) -> None: ...

class EntropyProblem_float64(EntropyProblem_float32): ...

def sort_by_class(
    *, labels_ptr: int, num_samples: int, order_ptr: int, class_offsets_ptr: int, smallest_ptr: int
) -> None: ...
def entropy_of_eigenvalues(eigenvalues: list[float], alpha: float) -> float: ...
def isa_level() -> str: ...
def isa_levels_built() -> list[str]: ...
def cuda_architectures() -> str: ...
def cuda_largest_num_samples(device: int) -> int: ...
def cuda_runtime_beyond_driver(device: int) -> str: ...
