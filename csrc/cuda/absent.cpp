// The CUDA backend of a build that has none: it says so.
// SPDX-License-Identifier: MIT
#include <stdexcept>

#include "cuda/launch.h"

namespace hrel::cuda {
namespace {

[[noreturn]] void absent() {
  throw std::runtime_error("this build of hrel_ext holds no CUDA kernels: build it again with HREL_CUDA=ON");
}

}  // namespace

char const* built_architectures() { return ""; }

Index largest_num_samples(int) { return 0; }

std::string runtime_beyond_driver(int) { return ""; }

template <class Scalar, class Stored>
Index workspace_bytes(RelevanceProblem<Scalar, Stored> const&, int) {
  absent();
}

template <class Stored>
Index workspace_bytes(AlignmentProblem<float, Stored> const&, int) {
  absent();
}

template <class Scalar>
Index workspace_bytes(EntropyProblem<Scalar> const&, int) {
  absent();
}

template <class Scalar, class Stored>
void relevance(RelevanceProblem<Scalar, Stored> const&, Workspace, Stream) {
  absent();
}

template <class Stored>
void kernel_alignment(AlignmentProblem<float, Stored> const&, Workspace, Stream) {
  absent();
}

template <class Scalar>
void matrix_entropy(EntropyProblem<Scalar> const&, Workspace, Stream) {
  absent();
}

template Index workspace_bytes(RelevanceProblem<float, float> const&, int);
template Index workspace_bytes(AlignmentProblem<float, float> const&, int);
template void relevance(RelevanceProblem<float, float> const&, Workspace, Stream);
template void kernel_alignment(AlignmentProblem<float, float> const&, Workspace, Stream);
template Index workspace_bytes(RelevanceProblem<float, Half> const&, int);
template Index workspace_bytes(AlignmentProblem<float, Half> const&, int);
template void relevance(RelevanceProblem<float, Half> const&, Workspace, Stream);
template void kernel_alignment(AlignmentProblem<float, Half> const&, Workspace, Stream);
template Index workspace_bytes(RelevanceProblem<float, BFloat16> const&, int);
template Index workspace_bytes(AlignmentProblem<float, BFloat16> const&, int);
template void relevance(RelevanceProblem<float, BFloat16> const&, Workspace, Stream);
template void kernel_alignment(AlignmentProblem<float, BFloat16> const&, Workspace, Stream);
template Index workspace_bytes(RelevanceProblem<double, double> const&, int);
template void relevance(RelevanceProblem<double, double> const&, Workspace, Stream);
template Index workspace_bytes(EntropyProblem<float> const&, int);
template void matrix_entropy(EntropyProblem<float> const&, Workspace, Stream);
template Index workspace_bytes(EntropyProblem<double> const&, int);
template void matrix_entropy(EntropyProblem<double> const&, Workspace, Stream);

}  // namespace hrel::cuda
