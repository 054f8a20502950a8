// Partial squared distances into the workspace, for maps so large that several teams share one, and for matrices too
// large for registers. [rows, splits, packed N x N] float32. SPDX-License-Identifier: MIT
#pragma once
#include "cuda/gram.cuh"
#include "cuda/kernel_shape.cuh"
#include "cuda/plan.h"
#include "cuda/product.cuh"

namespace hrel::cuda {

struct DistancesArguments {
  Maps maps;
  Index const* order;  // [N]
  float const* sigma;  // [F] or null: maps are scaled so that it lies in [1, 2)
  float* slots;
  Index splits;
  Index first_filter, num_filters;  // of this launch
  Index rounds = 1, round = 0;      // launches that take the positions of a split in turn, and which of them this is
};

// The power of two that brings sigma into [1, 2), so that no square leaves the range of numbers that matter.
template <class Real>
__device__ __forceinline__ Real scale_of_width(Real sigma) {
  constexpr int kLimit = sizeof(Real) == 4 ? 126 : 1022;
  int const exponent = -std::ilogb(sigma);
  return std::ldexp(Real(1), exponent > kLimit ? kLimit : exponent < -kLimit ? -kLimit : exponent);
}

// Of more samples the sums of products would not fit into registers.
inline constexpr int kLargestProductSize = 128;

template <class Shape>
union DistanceStage {
  GramStage<Shape> differences;
  ProductStage<Shape> products;
};

// Squared distances between the maps of a filter times `scale`, over positions begin .. end - 1, one of `parts` equal
// parts of them: by products where they pay and are accurate for this width (null: by differences), else by
// differences.
template <class Shape, class Store>
__device__ __forceinline__ void squared_distances_of_filter(Maps const& maps, Index const* order, Index filter,
                                                            Index begin, Index end, Index parts, float const* sigma,
                                                            DistanceStage<Shape>& stage, int thread,
                                                            Store const& store) {
  float const scale = sigma == nullptr ? 1.0f : scale_of_width(sigma[filter]);
  if constexpr (Shape::kSize <= kLargestProductSize) {
    if (sigma != nullptr && end - begin >= kLeastPositions) {
      float const width = sigma[filter] * scale;
      float const largest_square = kLargestSquare * width * width / static_cast<float>(parts);
      if (squared_distances_by_products<Shape>(maps, order, filter, begin, end, scale, largest_square, stage.products,
                                               thread, store)) {
        return;
      }
      // Refused by a vote of the team, which is a barrier: the stage is free.
    }
  }
  squared_distances<Shape>(maps, order, filter, begin, end, scale, stage.differences, thread, store);
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks) distances_kernel(DistancesArguments const args) {
  using Shape = typename Kernel::Shape;
  int const team = static_cast<int>(threadIdx.x) / Shape::kThreads;
  int const thread = static_cast<int>(threadIdx.x) % Shape::kThreads;
  Index const unit = static_cast<Index>(blockIdx.x) * Kernel::kTeams + team;
  if (unit >= args.num_filters * args.splits) return;
  Index const row = unit / args.splits, split = unit % args.splits, filter = args.first_filter + row;
  Index const positions = args.maps.num_positions, parts = args.splits * args.rounds;
  Index const part = split * args.rounds + args.round;
  float* const slot = args.slots + unit * packed_elements(args.maps.num_samples);
  squared_distances_of_filter<Shape>(
      args.maps, args.order, filter, part_begin(part, parts, positions), part_begin(part + 1, parts, positions), parts,
      args.sigma, shared_storage<DistanceStage<Shape>>()[team], thread, [&](int i, int j, float distance) {
        float& sum = slot[packed_offset(i, j)];
        sum = args.round == 0 ? distance : sum + distance;
      });
}

// Elements `offset` of row `row` of the workspace: the sums over the splits, in their order.
template <int kCount>
__device__ __forceinline__ void distances_of_slots(float const* slots, Index splits, Index num_samples, Index row,
                                                   int const (&offset)[kCount], float (&sum)[kCount]) {
  Index const elements = packed_elements(num_samples);
  float const* split = slots + row * splits * elements;
#pragma unroll
  for (int q = 0; q < kCount; ++q) sum[q] = 0;
  for (Index s = 0; s < splits; ++s, split += elements) {
#pragma unroll
    for (int q = 0; q < kCount; ++q) sum[q] += split[offset[q]];
  }
}

}  // namespace hrel::cuda
