// An op as a sequence of launches. `launch(kernel, grid_x, grid_y, threads, shared_bytes, arguments)` enqueues one: on
// a stream in the backend, on the emulator in the tests, so that both run the same sequence.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/alignment.cuh"
#include "cuda/entropies.cuh"
#include "cuda/exact.cuh"
#include "cuda/plan.h"

namespace hrel::cuda {

// Calls visit(Kernel{}) with the kernel shape for N samples.
template <class Visit>
void with_kernel_shape(Index num_samples, Visit const& visit) {
  switch (kernel_size(num_samples)) {
    case Kernel32::kSize:
      return visit(Kernel32{});
    case Kernel64::kSize:
      return visit(Kernel64{});
    case Kernel128::kSize:
      return visit(Kernel128{});
    default:
      return visit(Kernel256{});
  }
}

template <class Launch>
void launch_distances(DistancesArguments args, Launch const& launch) {
  Index const teams = args.num_filters * args.splits;
  args.rounds = num_rounds(args.maps.num_positions);
  for (Index round = 0; round < args.rounds; ++round) {
    args.round = round;
    with_kernel_shape(args.maps.num_samples, [&]<class Kernel>(Kernel) {
      launch(distances_kernel<Kernel>, (teams + Kernel::kTeams - 1) / Kernel::kTeams, 1, Kernel::kThreads,
             Kernel::kTeams * sizeof(DistanceStage<Kernel>), args);
    });
  }
}

template <class Kernel, class Launch>
void launch_band_entropies(EntropiesArguments const& args, Launch const& launch) {
  bool const from_maps = args.gram.data == nullptr && args.slots == nullptr;
  if constexpr (std::is_same_v<Kernel, Kernel128>) {
    // More of these fit onto the chip.
    if (!from_maps || args.maps.num_positions < kLeastPositions) {
      return launch_band_entropies<Kernel128OfSmallMaps>(args, launch);
    }
  }
  launch(band_entropies_kernel<Kernel>, args.num_filters, 1, Kernel::kThreads,
         shared_bytes_of_band<Kernel>(args.size(), from_maps), args);
}

template <class Launch>
void launch_entropies(EntropiesArguments const& args, Launch const& launch) {
  with_kernel_shape(args.size(), [&]<class Kernel>(Kernel) {
    if constexpr (std::is_same_v<Kernel, Kernel32>) {
      launch(register_entropies_kernel<Kernel>, (args.num_filters + Kernel::kTeams - 1) / Kernel::kTeams, 1,
             Kernel::kThreads, Kernel::kTeams * sizeof(RegisterTeam<Kernel>), args);
    } else {
      launch_band_entropies<Kernel>(args, launch);
    }
  });
}

template <class Scalar, class Launch>
void launch_exact(ExactArguments<Scalar> const& args, Index blocks, Launch const& launch) {
  launch(exact_entropies_kernel<Scalar>, blocks, 1, kPackedThreads, sizeof(ExactBlock), args);
}

// Whether the float64 kernel computes everything: for float64 operands, whatever the order, and without a short cut.
template <class Scalar>
bool takes_exact(EntropyOrder const& order) {
  return std::is_same_v<Scalar, double> || order.spectrum == Spectrum::kEigenvalues;
}

// --- relevance -------------------------------------------------------------------------------------------------------

template <class Scalar, class Stored>
Index workspace_bytes(RelevanceProblem<Scalar, Stored> const& problem, DeviceLimits const& limits) {
  ActivationView<Stored> const& acts = problem.acts;
  Index bytes = 0;
  if (!takes_exact<Scalar>(problem.order) && needs_slots(acts.num_samples, acts.num_features)) {
    bytes = plan_slots(acts.num_samples, acts.num_filters, acts.num_features).workspace_bytes();
  }
  return std::max(bytes, plan_exact(acts.num_samples, acts.num_filters, limits).workspace_bytes);
}

template <class Scalar, class Stored, class Launch>
void launch_relevance(RelevanceProblem<Scalar, Stored> const& problem, std::byte* workspace, DeviceLimits const& limits,
                      Launch const& launch) {
  Maps const maps = maps_of_filters(problem.acts);
  check_size(maps.num_samples, limits);
  bool const exact = takes_exact<Scalar>(problem.order);
  if constexpr (std::is_same_v<Scalar, float>) {
    if (!exact) {
      bool const slots = needs_slots(maps.num_samples, maps.num_positions);
      SlotPlan const plan =
          slots ? plan_slots(maps.num_samples, maps.num_filters, maps.num_positions) : SlotPlan{1, maps.num_filters, 0};
      float* const distances = slots ? reinterpret_cast<float*>(workspace) : nullptr;
      for (Index first = 0; first < maps.num_filters; first += plan.rows_per_launch) {
        Index const rows = std::min(plan.rows_per_launch, maps.num_filters - first);
        if (slots) {
          launch_distances({maps, problem.labels.order, problem.sigma, distances, plan.splits, first, rows}, launch);
        }
        launch_entropies({{},
                          maps,
                          problem.labels,
                          problem.sigma,
                          problem.order,
                          problem.entropy,
                          problem.joint_entropy,
                          distances,
                          plan.splits,
                          first,
                          rows},
                         launch);
      }
    }
  }
  launch_exact(ExactArguments<Scalar>{{},
                                      maps,
                                      problem.labels,
                                      problem.sigma,
                                      problem.order.alpha,
                                      problem.entropy,
                                      problem.joint_entropy,
                                      maps.num_filters,
                                      !exact,
                                      reinterpret_cast<double*>(workspace)},
               plan_exact(maps.num_samples, maps.num_filters, limits).blocks, launch);
}

// --- matrix_entropy --------------------------------------------------------------------------------------------------

template <class Scalar>
Index workspace_bytes(EntropyProblem<Scalar> const& problem, DeviceLimits const& limits) {
  return plan_exact(problem.gram.size, problem.gram.num_matrices, limits).workspace_bytes;
}

template <class Scalar, class Launch>
void launch_matrix_entropy(EntropyProblem<Scalar> const& problem, std::byte* workspace, DeviceLimits const& limits,
                           Launch const& launch) {
  Index const n = problem.gram.size, count = problem.gram.num_matrices;
  check_size(n, limits);
  bool const exact = takes_exact<Scalar>(problem.order);
  if constexpr (std::is_same_v<Scalar, float>) {
    if (!exact) {
      launch_entropies({problem.gram, {}, {}, nullptr, problem.order, problem.entropy, nullptr, nullptr, 1, 0, count},
                       launch);
    }
  }
  launch_exact(ExactArguments<Scalar>{problem.gram,
                                      {},
                                      {},
                                      nullptr,
                                      problem.order.alpha,
                                      problem.entropy,
                                      nullptr,
                                      count,
                                      !exact,
                                      reinterpret_cast<double*>(workspace)},
               plan_exact(n, count, limits).blocks, launch);
}

// --- kernel_alignment ------------------------------------------------------------------------------------------------

template <class Stored>
SlotPlan plan_alignment(AlignmentProblem<float, Stored> const& problem) {
  ActivationView<Stored> const& acts = problem.acts;
  return plan_slots(acts.num_samples, problem.per_filter ? acts.num_filters : 1,
                    problem.per_filter ? acts.num_features : acts.num_filters * acts.num_features);
}

template <class Stored>
Index workspace_bytes(AlignmentProblem<float, Stored> const& problem, DeviceLimits const&) {
  return plan_alignment(problem).workspace_bytes();
}

template <class Stored, class Launch>
void launch_kernel_alignment(AlignmentProblem<float, Stored> const& problem, std::byte* workspace,
                             DeviceLimits const& limits, Launch const& launch) {
  Maps const maps = problem.per_filter ? maps_of_filters(problem.acts) : map_of_layer(problem.acts);
  check_size(maps.num_samples, limits);
  SlotPlan const plan = plan_alignment(problem);
  float* const distances = reinterpret_cast<float*>(workspace);
  for (Index first = 0; first < maps.num_filters; first += plan.rows_per_launch) {
    Index const rows = std::min(plan.rows_per_launch, maps.num_filters - first);
    launch_distances({maps, problem.labels.order, nullptr, distances, plan.splits, first, rows}, launch);
    launch(alignment_kernel<kAlignmentThreads>, rows, width_slices(rows, problem.num_widths, limits), kAlignmentThreads,
           sizeof(AlignmentBlock<kAlignmentThreads>) + packed_elements(maps.num_samples) * sizeof(float),
           AlignmentArguments{maps.num_samples, problem.labels, problem.multiples, problem.num_widths, distances,
                              plan.splits, first, problem.mean_distance, problem.alignment});
  }
}

}  // namespace hrel::cuda
