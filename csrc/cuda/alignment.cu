// The op kernel_alignment on a stream.
// SPDX-License-Identifier: MIT
#include "cuda/launches.cuh"
// After the functions that it calls.
#include "cuda/device.h"

namespace hrel::cuda {

template <class Stored>
Index workspace_bytes(AlignmentProblem<float, Stored> const& problem, int device) {
  return workspace_bytes(problem, limits_of(device));
}

template <class Stored>
void kernel_alignment(AlignmentProblem<float, Stored> const& problem, Workspace workspace, Stream stream) {
  enqueue(problem, workspace, stream, [&](std::byte* memory, DeviceLimits const& limits, OnStream const& launch) {
    launch_kernel_alignment(problem, memory, limits, launch);
  });
}

template Index workspace_bytes(AlignmentProblem<float, float> const&, int);
template Index workspace_bytes(AlignmentProblem<float, Half> const&, int);
template Index workspace_bytes(AlignmentProblem<float, BFloat16> const&, int);
template void kernel_alignment(AlignmentProblem<float, float> const&, Workspace, Stream);
template void kernel_alignment(AlignmentProblem<float, Half> const&, Workspace, Stream);
template void kernel_alignment(AlignmentProblem<float, BFloat16> const&, Workspace, Stream);

}  // namespace hrel::cuda
