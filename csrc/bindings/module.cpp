// The native module: a table of contents. Tensors arrive as addresses with extents and strides; no torch, no
// arithmetic. SPDX-License-Identifier: MIT
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/arguments.h"
#include "cpu/launch.h"
#include "cuda/launch.h"

namespace py = pybind11;
namespace hrel::bindings {
namespace {

template <class Scalar>
void relevance_cpu(Address acts_ptr, Extents acts_shape, Extents acts_strides, Address order_ptr,
                   Address class_offsets_ptr, Address label_gram_ptr, Address sigma_ptr, double alpha,
                   std::optional<RationalLists> const& rational, int num_threads, Address entropy_ptr,
                   Address joint_entropy_ptr) {
  RelevanceProblem<Scalar> const problem{activations<Scalar>(acts_ptr, acts_shape, acts_strides),
                                         labels<Scalar>(order_ptr, class_offsets_ptr, label_gram_ptr),
                                         pointer<Scalar const>(sigma_ptr, "sigma_ptr"),
                                         entropy_order(alpha, rational),
                                         pointer<Scalar>(entropy_ptr, "entropy_ptr"),
                                         pointer<Scalar>(joint_entropy_ptr, "joint_entropy_ptr")};
  py::gil_scoped_release const release;
  cpu::relevance(problem, cpu::NumThreads{num_threads}, *cpu::usable_levels().front());
}

template <class Scalar>
void kernel_alignment_cpu(Address acts_ptr, Extents acts_shape, Extents acts_strides, Address order_ptr,
                          Address class_offsets_ptr, Address label_gram_ptr, Address multiples_ptr, Index num_widths,
                          bool per_filter, int num_threads, Address mean_distance_ptr, Address alignment_ptr) {
  if (num_widths < 1) throw std::invalid_argument("num_widths must be >= 1");
  AlignmentProblem<Scalar> const problem{activations<Scalar>(acts_ptr, acts_shape, acts_strides),
                                         labels<Scalar>(order_ptr, class_offsets_ptr, label_gram_ptr),
                                         pointer<Scalar const>(multiples_ptr, "multiples_ptr"),
                                         num_widths,
                                         per_filter,
                                         pointer<Scalar>(mean_distance_ptr, "mean_distance_ptr"),
                                         pointer<Scalar>(alignment_ptr, "alignment_ptr")};
  py::gil_scoped_release const release;
  cpu::kernel_alignment(problem, cpu::NumThreads{num_threads}, *cpu::usable_levels().front());
}

template <class Scalar>
void define_kernels(py::module_& module, std::string const& suffix) {
  using py::arg;
  module.def(("relevance_cpu_" + suffix).c_str(), &relevance_cpu<Scalar>, py::kw_only(), arg("acts_ptr"),
             arg("acts_shape"), arg("acts_strides"), arg("order_ptr"), arg("class_offsets_ptr"), arg("label_gram_ptr"),
             arg("sigma_ptr"), arg("alpha"), arg("rational"), arg("num_threads"), arg("entropy_ptr"),
             arg("joint_entropy_ptr"));
  module.def(("kernel_alignment_cpu_" + suffix).c_str(), &kernel_alignment_cpu<Scalar>, py::kw_only(), arg("acts_ptr"),
             arg("acts_shape"), arg("acts_strides"), arg("order_ptr"), arg("class_offsets_ptr"), arg("label_gram_ptr"),
             arg("multiples_ptr"), arg("num_widths"), arg("per_filter"), arg("num_threads"), arg("mean_distance_ptr"),
             arg("alignment_ptr"));
}

}  // namespace
}  // namespace hrel::bindings

PYBIND11_MODULE(_C, module) {
  using namespace hrel;
  module.doc() = "Native kernels of hrel_ext: see hrel_ext/_ops.py, their only caller.";
  py::class_<bindings::RationalLists>(module, "Rational")
      .def(py::init([](std::vector<double> powers, std::vector<double> poles, std::vector<double> weights) {
             return bindings::RationalLists{std::move(powers), std::move(poles), std::move(weights)};
           }),
           py::kw_only(), py::arg("powers"), py::arg("poles"), py::arg("weights"));
  bindings::define_kernels<float>(module, "float32");
  bindings::define_kernels<double>(module, "float64");
  module.def("isa_level", [] { return cpu::usable_levels().front()->name; });
  module.def("isa_levels_built", [] { return cpu::built_levels(); });
  module.def("cuda_architectures", [] { return cuda::built_architectures(); });
  module.attr("compiler") = HREL_COMPILER;
}
