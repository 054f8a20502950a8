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
  cudaGetLastError();  // forgets it, or a later launch would be blamed
  throw std::runtime_error(std::string("CUDA: ") + what + " failed: " + cudaGetErrorString(status));
}

// Makes a device current until the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device_ != previous_) check(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (device_ != previous_) cudaSetDevice(previous_);
  }
  DeviceGuard(DeviceGuard const&) = delete;
  DeviceGuard& operator=(DeviceGuard const&) = delete;

 private:
  int device_, previous_ = 0;
};

// What CUDA answers when asked whether a kernel runs on a device. The error is forgotten.
template <class Kernel>
cudaError_t status_of(Kernel kernel, int device) {
  int num_devices = 0;
  cudaError_t status = cudaGetDeviceCount(&num_devices);  // first: with too old a driver every call fails
  if (status == cudaSuccess) {
    DeviceGuard const guard(device);
    cudaFuncAttributes attributes;
    status = cudaFuncGetAttributes(&attributes, kernel);
  }
  cudaGetLastError();
  return status;
}

inline bool means_old_driver(cudaError_t status) {
  return status == cudaErrorInsufficientDriver || status == cudaErrorUnsupportedPtxVersion;
}

// Whether the kernels of this build cannot run here, but nothing is broken.
inline bool means_no_kernels(cudaError_t status) {
  return means_old_driver(status) || status == cudaErrorNoDevice || status == cudaErrorNoKernelImageForDevice ||
         status == cudaErrorInvalidDeviceFunction;
}

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
  DeviceLimits limits;

  template <class Kernel, class Arguments>
  void operator()(Kernel kernel, Index grid_x, Index grid_y, int threads, std::size_t shared_bytes,
                  Arguments const& args) const {
    // Always the most that a block may have, since the setting is the kernel's and not the launch's: another thread may
    // launch it at another size. The kernels have no static shared memory that would count towards it.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(limits.shared_bytes)),
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
  launches(workspace.data, limits, OnStream{static_cast<cudaStream_t>(stream.handle), limits});
}

}  // namespace hrel::cuda
