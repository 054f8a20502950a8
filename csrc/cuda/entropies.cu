// The ops relevance and matrix_entropy on a stream.
// SPDX-License-Identifier: MIT
#include "cuda/launches.cuh"
// After the functions that it calls.
#include "cuda/device.h"

namespace hrel::cuda {

char const* built_architectures() { return HREL_CUDA_ARCHITECTURES; }

Index largest_num_samples(int device) {
  cudaError_t const status = status_of(band_entropies_kernel<Kernel128>, device);
  if (means_no_kernels(status)) return 0;
  check(status, "cudaFuncGetAttributes");
  return largest_size(limits_of(device));
}

std::string runtime_beyond_driver(int device) {
  if (!means_old_driver(status_of(band_entropies_kernel<Kernel128>, device))) return "";
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

template <class Scalar, class Stored>
Index workspace_bytes(RelevanceProblem<Scalar, Stored> const& problem, int device) {
  return workspace_bytes(problem, limits_of(device));
}

template <class Scalar, class Stored>
void relevance(RelevanceProblem<Scalar, Stored> const& problem, Workspace workspace, Stream stream) {
  enqueue(problem, workspace, stream, [&](std::byte* memory, DeviceLimits const& limits, OnStream const& launch) {
    launch_relevance(problem, memory, limits, launch);
  });
}

template <class Scalar>
Index workspace_bytes(EntropyProblem<Scalar> const& problem, int device) {
  return workspace_bytes(problem, limits_of(device));
}

template <class Scalar>
void matrix_entropy(EntropyProblem<Scalar> const& problem, Workspace workspace, Stream stream) {
  enqueue(problem, workspace, stream, [&](std::byte* memory, DeviceLimits const& limits, OnStream const& launch) {
    launch_matrix_entropy(problem, memory, limits, launch);
  });
}

template Index workspace_bytes(RelevanceProblem<float, float> const&, int);
template Index workspace_bytes(RelevanceProblem<float, Half> const&, int);
template Index workspace_bytes(RelevanceProblem<float, BFloat16> const&, int);
template Index workspace_bytes(RelevanceProblem<double, double> const&, int);
template Index workspace_bytes(EntropyProblem<float> const&, int);
template Index workspace_bytes(EntropyProblem<double> const&, int);
template void relevance(RelevanceProblem<float, float> const&, Workspace, Stream);
template void relevance(RelevanceProblem<float, Half> const&, Workspace, Stream);
template void relevance(RelevanceProblem<float, BFloat16> const&, Workspace, Stream);
template void relevance(RelevanceProblem<double, double> const&, Workspace, Stream);
template void matrix_entropy(EntropyProblem<float> const&, Workspace, Stream);
template void matrix_entropy(EntropyProblem<double> const&, Workspace, Stream);

}  // namespace hrel::cuda
