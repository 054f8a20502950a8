// How a problem is cut into launches: pure functions of sizes and of the limits of a device, so that they are tested
// without one. Nothing that decides the order of a sum depends on the number of filters: one filter and many give the
// same bits. SPDX-License-Identifier: MIT
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>

#include "numerics/config.h"

namespace hrel::cuda {

struct DeviceLimits {
  Index multiprocessors;
  Index shared_bytes;  // the most that one block may ask for
};

HREL_HD constexpr Index packed_elements(Index n) { return n * (n + 1) / 2; }

// The largest N of each kernel, and of those that form the distances themselves.
inline constexpr Index kKernelSizes[] = {32, 64, 128, 256};
inline constexpr Index kLargestFusedSize = 128, kLargestSize = 256;
// Shared memory of the kernels beside the matrix, which they assert to suffice.
inline constexpr Index kSharedBytesBesideMatrix = 40 * 1024;

// Elements of a matrix as cuda/tiles.cuh keeps it.
constexpr Index elements_of_tiles(Index n) {
  Index const tiles = (n + 15) / 16;
  return tiles * (tiles + 1) / 2 * 256;
}

// The largest N whose matrix fits into the shared memory of one block.
constexpr Index largest_size(DeviceLimits const& limits) {
  Index n = kLargestSize;
  while (elements_of_tiles(n) * 4 + kSharedBytesBesideMatrix > limits.shared_bytes) --n;
  return n;
}

// The size of the kernel for N samples.
constexpr Index kernel_size(Index num_samples) {
  for (Index size : kKernelSizes) {
    if (num_samples <= size) return size;
  }
  return kLargestSize;
}

inline void check_size(Index num_samples, DeviceLimits const& limits) {
  if (num_samples <= largest_size(limits)) return;
  throw std::invalid_argument("num_samples must be at most " + std::to_string(largest_size(limits)) +
                              " on this device, got " + std::to_string(num_samples));
}

// Positions from which distances by products pay.
inline constexpr Index kLeastPositions = 32;

// Positions of a map shared out among several teams, whose partial distances are then added in order: few enough parts
// that writing and reading them is worth it, and 32 teams a filter fill any chip.
inline constexpr Index kPositionsPerSplit = 512, kMostSplits = 32;

constexpr Index num_splits(Index num_positions) {
  return std::min<Index>(num_positions / kPositionsPerSplit + 1, kMostSplits);
}

// Positions of one float32 sum: where all its terms are equal, the rounding of more would show in an entropy. Longer
// parts are summed in rounds, a launch each.
inline constexpr Index kLongestSum = 1024;

constexpr Index num_rounds(Index num_positions) {
  Index const of_round = num_splits(num_positions) * kLongestSum;
  return (num_positions + of_round - 1) / of_round;
}

// Where part number `part` of a map begins, and the one before it ends: at a multiple of four, for reads of four.
HREL_HD constexpr Index part_begin(Index part, Index parts, Index num_positions) {
  return part == parts ? num_positions : part * num_positions / parts / 4 * 4;
}

inline constexpr Index kMostWorkspaceBytes = Index{64} << 20;

// Distances in the workspace, [rows, splits, elements_of_tiles(N)] float32: rows at a time, in as few launches as the
// workspace allows, of equal size.
struct SlotPlan {
  Index splits, rows_per_launch, slot_bytes;  // of one row, all splits

  Index workspace_bytes() const { return rows_per_launch * slot_bytes; }
};

constexpr SlotPlan plan_slots(Index num_samples, Index num_rows, Index num_positions) {
  Index const splits = num_splits(num_positions);
  Index const slot_bytes = splits * elements_of_tiles(num_samples) * 4;
  Index const most_rows = std::max<Index>(1, kMostWorkspaceBytes / slot_bytes);
  Index const launches = std::max<Index>(1, (num_rows + most_rows - 1) / most_rows);
  return {splits, (num_rows + launches - 1) / launches, slot_bytes};
}

// Whether the entropies need the distances in the workspace first.
constexpr bool needs_slots(Index num_samples, Index num_positions) {
  return num_samples > kLargestFusedSize || num_splits(num_positions) > 1;
}

// Blocks of the float64 route, each with two matrices of its own in the workspace, which take turns at the filters.
struct ExactPlan {
  Index blocks, workspace_bytes;
};

constexpr ExactPlan plan_exact(Index num_samples, Index num_matrices, DeviceLimits const& limits) {
  Index const bytes = 2 * packed_elements(num_samples) * 8;
  Index const most = std::max<Index>(1, kMostWorkspaceBytes / bytes);
  Index const blocks = std::max<Index>(1, std::min({num_matrices, limits.multiprocessors, most}));
  return {blocks, blocks * bytes};
}

// Blocks that share the widths of one row among them: enough for the chip, at least kWidthsAtOnce widths each.
inline constexpr Index kWidthsAtOnce = 8;

constexpr Index width_slices(Index num_rows, Index num_widths, DeviceLimits const& limits) {
  Index const most = (num_widths + kWidthsAtOnce - 1) / kWidthsAtOnce;
  return std::clamp<Index>((2 * limits.multiprocessors + num_rows - 1) / num_rows, 1, most);
}

}  // namespace hrel::cuda
