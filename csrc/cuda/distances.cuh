// Partial squared distances into the workspace, for maps so large that several teams share one, and for matrices too
// large for registers. [rows, splits, tiles of N x N] float32. SPDX-License-Identifier: MIT
#pragma once
#include <type_traits>

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

template <class Kernel>
union DistanceStage {
  GramStage<typename Kernel::Shape> differences;
  std::conditional_t<Kernel::kProducts, ProductStage<typename Kernel::Shape>, char> products;
};

// Squared distances between the maps of a filter times the scale of its width, over one of `parts` equal parts of the
// positions: by products where they pay and are accurate for this width (null: by differences), else by differences.
template <class Kernel, class Store>
__device__ __forceinline__ void squared_distances_of_filter(Maps const& maps, Index const* order, int filter, int part,
                                                            int parts, float const* sigma, DistanceStage<Kernel>& stage,
                                                            int thread, Store const& store) {
  using Shape = typename Kernel::Shape;
  float const scale = sigma == nullptr ? 1.0f : scale_of_width(sigma[filter]);
  bool done = false;
  if constexpr (Kernel::kProducts) {
    Index const begin = part_begin(part, parts, maps.num_positions);
    Index const end = part_begin(part + 1, parts, maps.num_positions);
    if (sigma != nullptr && end - begin >= kLeastPositions && maps.in_reach) {
      float const width = sigma[filter] * scale;
      float const largest_square = kLargestSquare * width * width / static_cast<float>(parts);
      // Refused by a vote of the team, which is a barrier: the stage is free.
      done = squared_distances_by_products<Shape>(maps, order, filter, begin, end, scale, largest_square,
                                                  stage.products, thread, store);
    }
  }
  if (done) return;
  part = known_from_here(part);
  squared_distances<Shape>(maps, order, filter, part_begin(part, parts, maps.num_positions),
                           part_begin(part + 1, parts, maps.num_positions), scale, stage.differences,
                           known_from_here(thread), store);
}

__device__ __forceinline__ float sum_of(float a, float b) { return a + b; }
__device__ __forceinline__ float2 sum_of(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks) distances_kernel(DistancesArguments const args) {
  using Shape = typename Kernel::Shape;
  // Known to be 0 of one team, which leaves its place to the registers that a warp shares.
  int const team = Kernel::kTeams == 1 ? 0 : static_cast<int>(threadIdx.x) / Shape::kThreads;
  int const thread = static_cast<int>(threadIdx.x) % Shape::kThreads;
  int const unit = static_cast<int>(blockIdx.x) * Kernel::kTeams + team, splits = static_cast<int>(args.splits);
  if (unit >= args.num_filters * args.splits) return;
  int const filter = static_cast<int>(args.first_filter) + unit / splits, rounds = static_cast<int>(args.rounds);
  squared_distances_of_filter<Kernel>(
      args.maps, args.order, filter, unit % splits * rounds + static_cast<int>(args.round), splits * rounds, args.sigma,
      shared_storage<DistanceStage<Kernel>>()[team], thread, [&]<class Value>(int offset, Value distance) {
        int const elements = tiled_elements(static_cast<int>(args.maps.num_samples));
        if (offset >= elements) return;
        Value& sum = *reinterpret_cast<Value*>(args.slots + static_cast<Index>(unit) * elements + offset);
        sum = args.round == 0 ? distance : sum_of(sum, distance);
      });
}

// Elements `offset` of row `row` of the workspace: the sums over the splits, in their order.
template <int kCount>
__device__ __forceinline__ void distances_of_slots(float const* slots, Index splits, Index num_samples, Index row,
                                                   int const (&offset)[kCount], float (&sum)[kCount]) {
  Index const elements = tiled_elements(static_cast<int>(num_samples));
  float const* split = slots + row * splits * elements;
#pragma unroll
  for (int q = 0; q < kCount; ++q) sum[q] = 0;
  for (Index s = 0; s < splits; ++s, split += elements) {
#pragma unroll
    for (int q = 0; q < kCount; ++q) sum[q] += split[offset[q]];
  }
}

}  // namespace hrel::cuda
