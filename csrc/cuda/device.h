// The CUDA runtime at the boundary: errors become exceptions, the caller's device stays current, launches go to a
// stream. SPDX-License-Identifier: MIT
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/plan.h"

namespace hrel::cuda {

inline void check(cudaError_t status, char const* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + what + " failed: " + cudaGetErrorString(status));
}

// Makes a device current until the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(DeviceGuard const&) = delete;
  DeviceGuard& operator=(DeviceGuard const&) = delete;

 private:
  int previous_ = 0;
};

inline DeviceLimits limits_of(int device) {
  int multiprocessors = 0, shared_bytes = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  return {multiprocessors, shared_bytes};
}

// Enqueues one launch, see cuda/launches.cuh.
struct OnStream {
  cudaStream_t stream;

  template <class Kernel, class Arguments>
  void operator()(Kernel kernel, Index grid_x, Index grid_y, int threads, std::size_t shared_bytes,
                  Arguments const& args) const {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          "cudaFuncSetAttribute");
    // As many blocks on a multiprocessor as their shared memory allows; little goes through the cache.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
          "cudaFuncSetAttribute");
    kernel<<<dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y)), static_cast<unsigned>(threads),
             shared_bytes, stream>>>(args);
    check(cudaGetLastError(), "a launch");
  }
};

// Sets the stage for an op: its device is current, its workspace is large enough.
template <class Problem, class Launches>
void enqueue(Problem const& problem, Workspace workspace, Stream stream, Launches const& launches) {
  DeviceGuard const guard(stream.device);
  DeviceLimits const limits = limits_of(stream.device);
  if (workspace.bytes < workspace_bytes(problem, limits)) {
    throw std::invalid_argument("workspace_bytes must be at least " + std::to_string(workspace_bytes(problem, limits)) +
                                ", got " + std::to_string(workspace.bytes));
  }
  launches(workspace.data, limits, OnStream{static_cast<cudaStream_t>(stream.handle)});
}

}  // namespace hrel::cuda
