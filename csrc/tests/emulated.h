// The launches of an op on the emulator instead of a stream. Include it first: it brings the emulator, which defines
// what the kernels take from CUDA. SPDX-License-Identifier: MIT
#pragma once
#include "tests/cuda_emulator.h"
// Not sorted: the emulator comes first.
#include <limits>
#include <type_traits>
#include <vector>

#include "check.h"
#include "cuda/launches.cuh"

namespace hrel::test {

// One multiprocessor: blocks take turns at several filters or widths.
inline constexpr cuda::DeviceLimits kLimits{1, 227 * 1024};

inline Index not_finite(float const* values, Index count) {
  Index found = 0;
  for (Index i = 0; values != nullptr && i < count; ++i) found += !std::isfinite(values[i]);
  return found;
}

struct Emulated {
  emulator::Schedule schedule;
  // How many float32 results are left to the float64 kernel, which would otherwise hide what the others do wrong.
  Index* left_to_exact;

  template <class Kernel, class Arguments>
  void operator()(Kernel kernel, Index grid_x, Index grid_y, int threads, std::size_t shared_bytes,
                  Arguments const& args) const {
    CHECK(static_cast<Index>(shared_bytes) <= kLimits.shared_bytes);
    if constexpr (std::is_same_v<Arguments, cuda::ExactArguments<float>>) {
      if (args.only_not_finite) {
        *left_to_exact +=
            not_finite(args.entropy, args.num_matrices) + not_finite(args.joint_entropy, args.num_matrices);
      }
    }
    emulator::launch(dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y)),
                     dim3(static_cast<unsigned>(threads)), shared_bytes, schedule, kernel, args);
  }
};

// Runs a problem in a workspace that ends where the plan says, so that the address sanitizer sees a write past it.
// Returns the number of results left to the float64 kernel.
template <class Problem, class Launches>
Index run_emulated(Problem const& problem, emulator::Schedule const& schedule, Launches const& launches) {
  std::vector<float> workspace(cuda::workspace_bytes(problem, kLimits) / 4, std::numeric_limits<float>::quiet_NaN());
  CHECK(cuda::workspace_bytes(problem, kLimits) % 4 == 0);
  Index left = 0;
  launches(problem, reinterpret_cast<std::byte*>(workspace.data()), kLimits, Emulated{schedule, &left});
  return left;
}

template <class Scalar, class Stored>
Index run(RelevanceProblem<Scalar, Stored> const& problem, emulator::Schedule const& schedule) {
  return run_emulated(problem, schedule, [](auto const&... args) { cuda::launch_relevance(args...); });
}

template <class Scalar>
Index run(EntropyProblem<Scalar> const& problem, emulator::Schedule const& schedule) {
  return run_emulated(problem, schedule, [](auto const&... args) { cuda::launch_matrix_entropy(args...); });
}

template <class Stored>
Index run(AlignmentProblem<float, Stored> const& problem, emulator::Schedule const& schedule) {
  return run_emulated(problem, schedule, [](auto const&... args) { cuda::launch_kernel_alignment(args...); });
}

}  // namespace hrel::test
