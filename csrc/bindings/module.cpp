// The native module: a table of contents. Tensors arrive as addresses with extents and strides; no torch, no
// arithmetic. SPDX-License-Identifier: MIT
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <type_traits>
#include <vector>

#include "bindings/arguments.h"
#include "cpu/launch.h"
#include "cuda/launch.h"
#include "numerics/entropy.h"

namespace py = pybind11;
namespace hrel::bindings {
namespace {

using py::arg;

// A problem as Python holds it: made once from its operands, then run by the backend of the device they lie on.
template <class Problem>
void define_run_on_cuda(py::class_<Problem>& problem,
                        void (*launch)(std::type_identity_t<Problem> const&, cuda::Workspace, cuda::Stream)) {
  problem.def(
      "cuda_workspace_bytes", [](Problem const& self, int device) { return cuda::workspace_bytes(self, device); },
      py::kw_only(), arg("device"));
  problem.def(
      "run_on_cuda",
      [launch](Problem const& self, Address workspace_ptr, Index workspace_bytes, int device, Address stream_ptr) {
        launch(self, {reinterpret_cast<std::byte*>(workspace_ptr), workspace_bytes},
               {device, reinterpret_cast<void*>(stream_ptr)});
      },
      py::kw_only(), arg("workspace_ptr"), arg("workspace_bytes"), arg("device"), arg("stream_ptr"),
      py::call_guard<py::gil_scoped_release>());
}

template <class Problem, class Result = void>
void define_run_on_cpu(py::class_<Problem>& problem,
                       Result (*launch)(std::type_identity_t<Problem> const&, cpu::NumThreads, cpu::Level const&)) {
  problem.def(
      "run_on_cpu",
      [launch](Problem const& self, int num_threads) {
        return launch(self, cpu::NumThreads{num_threads}, *cpu::usable_levels().front());
      },
      py::kw_only(), arg("num_threads"), py::call_guard<py::gil_scoped_release>());
}

// Half precision is for CUDA alone, and alignments in float64 for the CPU.
template <class Scalar, class Stored>
void define_problems_of_activations(py::module_& module, std::string const& suffix) {
  py::class_<RelevanceProblem<Scalar, Stored>> relevance(module, ("RelevanceProblem_" + suffix).c_str());
  relevance.def(py::init(&relevance_problem<Scalar, Stored>), py::kw_only(), arg("acts_ptr"), arg("acts_shape"),
                arg("acts_strides"), arg("order_ptr"), arg("class_offsets_ptr"), arg("label_gram_ptr"),
                arg("sigma_ptr"), arg("entropy_order"), arg("entropy_ptr"), arg("joint_entropy_ptr"));
  py::class_<AlignmentProblem<Scalar, Stored>> alignment(module, ("AlignmentProblem_" + suffix).c_str());
  alignment.def(py::init(&alignment_problem<Scalar, Stored>), py::kw_only(), arg("acts_ptr"), arg("acts_shape"),
                arg("acts_strides"), arg("order_ptr"), arg("class_offsets_ptr"), arg("label_gram_ptr"),
                arg("multiples_ptr"), arg("num_widths"), arg("per_filter"), arg("mean_distance_ptr"),
                arg("alignment_ptr"));
  define_run_on_cuda(relevance, &cuda::relevance<Scalar, Stored>);
  if constexpr (std::is_same_v<Scalar, float>) define_run_on_cuda(alignment, &cuda::kernel_alignment<Stored>);
  if constexpr (std::is_same_v<Scalar, Stored>) {
    define_run_on_cpu(relevance, &cpu::relevance);
    define_run_on_cpu(alignment, &cpu::kernel_alignment);
  }
}

// On the CPU, of labels as they come.
template <class Scalar>
void define_problems_of_labels(py::module_& module, std::string const& suffix) {
  py::class_<TermsProblem<Scalar>> terms(module, ("TermsProblem_" + suffix).c_str());
  terms.def(py::init(&terms_problem<Scalar>), py::kw_only(), arg("acts_ptr"), arg("acts_shape"), arg("acts_strides"),
            arg("labels_ptr"), arg("sigma_ptr"), arg("entropy_order"), arg("relevance_ptr"), arg("entropy_ptr"),
            arg("joint_entropy_ptr"), arg("label_entropy_ptr"));
  py::class_<WidthProblem<Scalar>> width(module, ("WidthProblem_" + suffix).c_str());
  width.def(py::init(&width_problem<Scalar>), py::kw_only(), arg("acts_ptr"), arg("acts_shape"), arg("acts_strides"),
            arg("labels_ptr"), arg("multiples_ptr"), arg("num_widths"), arg("per_filter"), arg("mean_distance_ptr"),
            arg("width_ptr"));
  define_run_on_cpu<TermsProblem<Scalar>, bool>(terms, &cpu::relevance_terms);
  define_run_on_cpu<WidthProblem<Scalar>, bool>(width, &cpu::kernel_width);
}

template <class Scalar>
void define_problem_of_permutations(py::module_& module, std::string const& suffix) {
  py::class_<PermutationProblem<Scalar>> permutations(module, ("PermutationProblem_" + suffix).c_str());
  permutations.def(py::init(&permutation_problem<Scalar>), py::kw_only(), arg("acts_ptr"), arg("acts_shape"),
                   arg("acts_strides"), arg("order_ptr"), arg("class_offsets_ptr"), arg("sigma_ptr"),
                   arg("entropy_order"), arg("permutations_ptr"), arg("num_permutations"), arg("joint_entropy_ptr"));
  define_run_on_cpu(permutations, &cpu::permuted_joint_entropy);
}

template <class Scalar>
void define_problem_of_matrices(py::module_& module, std::string const& suffix) {
  py::class_<EntropyProblem<Scalar>> entropy(module, ("EntropyProblem_" + suffix).c_str());
  entropy.def(py::init(&entropy_problem<Scalar>), py::kw_only(), arg("gram_ptr"), arg("gram_shape"),
              arg("gram_strides"), arg("entropy_order"), arg("entropy_ptr"));
  define_run_on_cuda(entropy, &cuda::matrix_entropy<Scalar>);
  define_run_on_cpu(entropy, &cpu::matrix_entropy);
}

}  // namespace
}  // namespace hrel::bindings

PYBIND11_MODULE(_C, module) {
  using namespace hrel;
  module.doc() = "Native kernels of hrel_ext: see hrel_ext/_ops.py, their only caller.";
  py::class_<EntropyOrder>(module, "EntropyOrder")
      .def(py::init(&bindings::entropy_order), py::kw_only(), py::arg("alpha"), py::arg("powers"), py::arg("poles"),
           py::arg("weights"));
  bindings::define_problems_of_activations<float, float>(module, "float32");
  bindings::define_problems_of_activations<float, Half>(module, "float16");
  bindings::define_problems_of_activations<float, BFloat16>(module, "bfloat16");
  bindings::define_problems_of_activations<double, double>(module, "float64");
  bindings::define_problems_of_labels<float>(module, "float32");
  bindings::define_problems_of_labels<double>(module, "float64");
  bindings::define_problem_of_permutations<float>(module, "float32");
  bindings::define_problem_of_permutations<double>(module, "float64");
  bindings::define_problem_of_matrices<float>(module, "float32");
  bindings::define_problem_of_matrices<double>(module, "float64");
  module.def("sort_by_class", &bindings::sort_by_class, py::kw_only(), py::arg("labels_ptr"), py::arg("num_samples"),
             py::arg("order_ptr"), py::arg("class_offsets_ptr"), py::arg("smallest_ptr"));
  module.def(
      "entropy_of_eigenvalues",
      [](std::vector<double> const& eigenvalues, double alpha) {
        return entropy_bits_of_eigenvalues(eigenvalues.data(), static_cast<Index>(eigenvalues.size()), alpha);
      },
      py::arg("eigenvalues"), py::arg("alpha"));
  module.def("isa_level", [] { return cpu::usable_levels().front()->name; });
  module.def("isa_levels_built", [] { return cpu::built_levels(); });
  module.def("cuda_architectures", [] { return cuda::built_architectures(); });
  module.def("cuda_largest_num_samples", &cuda::largest_num_samples, py::arg("device"));
  module.def("cuda_runtime_beyond_driver", &cuda::runtime_beyond_driver, py::arg("device"));
  module.attr("compiler") = HREL_COMPILER;
}
