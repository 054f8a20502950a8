// Squared distances by products on the tensor cores, for maps of many positions:
//   d2_ij = |x_i|^2 + |x_j|^2 - 2 x_i . x_j,  x relative to the first sample, in 3 x TF32:  x = hi + lo,
//   x_i . x_j ~ hi_i hi_j + hi_i lo_j + lo_i hi_j, whose error is about 2^-21 (|x_i|^2 + |x_j|^2).
// Where that is too much against sigma^2 (an outlier, a narrow width) the caller is told, and takes differences.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"
#include "cuda/maps.cuh"

namespace hrel::cuda {

inline constexpr Index kLeastPositions = 32;     // of a map, from which products pay
inline constexpr float kLargestSquare = 16;      // |x_i|^2 / sigma^2: no distance errs by more than 1.6e-5 sigma^2
inline constexpr int kTileSize = 16, kStep = 8;  // rows of a tile; positions of one instruction

template <class Shape>
struct ProductStage {
  static constexpr int kTiles = Shape::kSize / kTileSize, kTilesOfTriangle = kTiles * (kTiles + 1) / 2;
  static constexpr int kTilesPerWarp = (kTilesOfTriangle + Shape::kWarps - 1) / Shape::kWarps;
  static constexpr int kPositions = kTilesPerWarp <= 9 ? 16 : 8;  // staged at once: as many as registers allow
  static constexpr int kPitch = Shape::kSize + 8;  // fragments of eight rows and four positions meet 32 banks
  alignas(16) float values[kPositions][kPitch];
  float squares[Shape::kSize];  // |x_i|^2
  Index sample_offset[Shape::kSize];
};

// As squared_distances of cuda/gram.cuh, for positions begin .. end - 1. Returns whether the products are accurate
// enough, the same for all threads of the team, and calls store only then. They are refused where some |x_i|^2 exceeds
// largest_square or is not finite, and where some pair is so near, and so far from the first sample, that the error
// 2^-21 (|x_i|^2 + |x_j|^2) of its distance could change exp(-d2_ij / sigma^2) by more than 2^-20.
template <class Shape, class Store>
__device__ __forceinline__ bool squared_distances_by_products(Maps const& maps, Index const* order, Index filter,
                                                              Index begin, Index end, float scale, float largest_square,
                                                              ProductStage<Shape>& stage, int thread,
                                                              Store const& store) {
  constexpr int kTilesPerWarp = ProductStage<Shape>::kTilesPerWarp, kPositions = ProductStage<Shape>::kPositions;
  constexpr int kTilesOfTriangle = ProductStage<Shape>::kTilesOfTriangle;
  constexpr int kRowsPerThread = 8 * Shape::kSize / Shape::kThreads, kOctets = kPositions / 8;
  int const n = static_cast<int>(maps.num_samples), warp = thread / kWarp, lane = thread % kWarp;
  int const group = lane / 4, member = lane % 4;  // of the lane in a fragment, see multiply_tf32
  write_sample_offsets<Shape>(maps, order, filter, stage.sample_offset, thread);

  // The tiles of this warp, row by row of the lower triangle: every kWarps-th one.
  int tile[kTilesPerWarp];          // its first column, and its first row from bit 16 on
  float sums[kTilesPerWarp][2][4];  // two fragments of 16 x 8
#pragma unroll
  for (int t = 0; t < kTilesPerWarp; ++t) {
    int row = 0, column = warp + t * Shape::kWarps;
    while (column > row) column -= ++row;
    tile[t] = row * kTileSize << 16 | column * kTileSize;
#pragma unroll
    for (int q = 0; q < 4; ++q) sums[t][0][q] = sums[t][1][q] = 0;
  }

  // Eight positions of four rows for each warp: whole sectors of memory.
  int const position = thread % 8;
  auto const row_of = [&](int i) { return thread / 8 + i * (Shape::kThreads / 8); };
  std::uint32_t next[kOctets][kRowsPerThread], first_sample[kOctets];  // the stage after the one in shared memory
  auto const fetch = [&](Index first) {
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      Index const place = first + octet * 8 + position;
      bool const inside = place < end;
      Index const offset = inside ? maps.position_offset(place) : 0;
      fetch_values(maps, next[octet], [&](int i) -> Index {
        return inside && row_of(i) < n ? stage.sample_offset[row_of(i)] + offset : -1;
      });
      std::uint32_t center[1];
      fetch_values(maps, center, [&](int) -> Index { return inside ? stage.sample_offset[0] + offset : -1; });
      first_sample[octet] = center[0];
    }
  };

  barrier<Shape::kThreads>();  // the offsets are written
  fetch(begin);
#pragma unroll 1
  for (Index first = begin; first < end; first += kPositions) {
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      float const center = value_of(first_sample[octet], maps.element);
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        float const value = (value_of(next[octet][i], maps.element) - center) * scale;
        stage.values[octet * 8 + position][row_of(i)] = row_of(i) < n ? value : 0;
      }
    }
    barrier<Shape::kThreads>();  // the stage is filled
    fetch(first + kPositions);
#pragma unroll
    for (int t = 0; t < kTilesPerWarp; ++t) {
      if (warp + t * Shape::kWarps >= kTilesOfTriangle) continue;

      // Summed from 0 for each stage: the tensor core rounds its running sum towards 0.
      float part[2][4] = {};
#pragma unroll
      for (int p = 0; p < kPositions; p += kStep) {
        float const* const left = &stage.values[p + member][(tile[t] >> 16) + group];
        float const* const right = &stage.values[p + member][(tile[t] & 0xffff) + group];
        constexpr int kFour = 4 * ProductStage<Shape>::kPitch;
        float const a[4] = {left[0], left[8], left[kFour], left[kFour + 8]};
        std::uint32_t a_high[4], a_low[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) split_tf32(a[q], a_high[q], a_low[q]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          std::uint32_t b_high[2], b_low[2];
          split_tf32(right[half * 8], b_high[0], b_low[0]);
          split_tf32(right[half * 8 + kFour], b_high[1], b_low[1]);
          multiply_tf32(part[half], a_low, b_high);
          multiply_tf32(part[half], a_high, b_low);
          multiply_tf32(part[half], a_high, b_high);
        }
      }
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        sums[t][0][q] += part[0][q];
        sums[t][1][q] += part[1][q];
      }
    }
    barrier<Shape::kThreads>();  // the stage is free
  }

  // Calls visit(row, column, sum) for the thread's elements of its tiles, padding and upper triangle included.
  auto const for_each_sum = [&](auto const& visit) {
#pragma unroll
    for (int t = 0; t < kTilesPerWarp; ++t) {
      if (warp + t * Shape::kWarps >= kTilesOfTriangle) continue;
      int const row = (tile[t] >> 16) + group, column = (tile[t] & 0xffff) + member * 2;
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        visit(row + q / 2 * 8, column + q % 2, sums[t][0][q]);
        visit(row + q / 2 * 8, column + q % 2 + 8, sums[t][1][q]);
      }
    }
  };
  bool refused = false;
  for_each_sum([&](int row, int column, float& sum) {
    if (row != column) return;
    stage.squares[row] = sum;
    refused = refused || !(sum <= largest_square);  // NaN is
  });
  if (any_of_team<Shape::kThreads>(refused)) return false;  // which is a barrier: the squares are written
  // An error of the distance counts for exp(-t) of it, t = d2 / sigma^2, so that near pairs far from the first sample
  // count most; e^t >= 1 + t + t^2 / 2.
  float const variance = largest_square / kLargestSquare;  // sigma^2, or the share of it that this part may take
  for_each_sum([&](int row, int column, float& sum) {
    float const squares = stage.squares[row] + stage.squares[column];
    sum = fmaxf(squares - 2 * sum, 0);
    float const t = sum / variance;
    refused = refused || (column < row && row < n && squares > 2 * variance * (1 + t * (1 + t * 0.5f)));
  });
  if (any_of_team<Shape::kThreads>(refused)) return false;  // a barrier: `store` may write over the stage
  for_each_sum([&](int row, int column, float& sum) {
    if (column <= row && row < n) store(row, column, sum);
  });
  return true;
}

}  // namespace hrel::cuda
