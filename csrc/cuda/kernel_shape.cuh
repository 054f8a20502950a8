// The kernel shapes: which matrix sizes, how many teams a block, how many blocks a multiprocessor should hold.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"

namespace hrel::cuda {

template <class Shape_, int kTeams_, int kBlocks_>
struct KernelShape {
  using Shape = Shape_;
  static constexpr int kSize = Shape::kSize;
  static constexpr int kTeams = kTeams_;    // of one block, each with its own filter
  static constexpr int kBlocks = kBlocks_;  // resident on one multiprocessor
  static constexpr int kThreads = kTeams * Shape::kThreads;
  static constexpr bool kInRegisters = kSize <= 128;
  static_assert(kTeams == 1 || Shape::kThreads == kWarp, "a team is one warp or the whole block");
};

using Kernel32 = KernelShape<BlockShape<8, 4, 4, 8>, 4, 4>;
using Kernel64 = KernelShape<BlockShape<8, 4, 8, 16>, 2, 4>;
using Kernel128 = KernelShape<BlockShape<16, 8, 8, 16>, 1, 2>;
using Kernel256 = KernelShape<BlockShape<16, 16, 16, 16>, 1, 1>;

// One warp reduces a class block of up to this size, so that the classes of a filter are reduced side by side.
using ClassShape = BlockShape<8, 4, 4, 8>;

}  // namespace hrel::cuda
