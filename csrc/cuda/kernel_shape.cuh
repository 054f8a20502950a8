// The kernel shapes: which matrix sizes, how many teams a block, how many blocks a multiprocessor should hold.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"

namespace hrel::cuda {

template <class Shape_, int kTeams_, int kBlocks_, bool kProducts_>
struct KernelShape {
  using Shape = Shape_;
  static constexpr int kSize = Shape::kSize;
  static constexpr int kTeams = kTeams_;         // of one block, each with its own filter
  static constexpr int kBlocks = kBlocks_;       // resident on one multiprocessor
  static constexpr bool kProducts = kProducts_;  // distances of large maps by products, whose sums take many registers
  static constexpr int kThreads = kTeams * Shape::kThreads;
  static_assert(kTeams == 1 || Shape::kThreads == kWarp, "a team is one warp or the whole block");
};

using Kernel32 = KernelShape<BlockShape<8, 4, 4, 8>, 4, 4, true>;  // reduces in registers, the others in shared memory
using Kernel64 = KernelShape<BlockShape<8, 8, 8, 8>, 1, 6, true>;
using Kernel128 = KernelShape<BlockShape<16, 8, 8, 16>, 1, 3, true>;
using Kernel128OfSmallMaps = KernelShape<BlockShape<16, 8, 8, 16>, 1, 4, false>;
using Kernel256 = KernelShape<BlockShape<16, 16, 16, 16>, 1, 1, false>;

}  // namespace hrel::cuda
