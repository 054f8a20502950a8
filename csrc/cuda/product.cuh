// Squared distances by products on the tensor cores, for maps of many positions:
//   d2_ij = |x_i|^2 + |x_j|^2 - 2 x_i . x_j,  x relative to the first sample, in 3 x TF32:  x = hi + lo,
//   x_i . x_j ~ hi_i hi_j + hi_i lo_j + lo_i hi_j, whose error is about 2^-21 (|x_i|^2 + |x_j|^2).
// Where that is too much against sigma^2 (an outlier, a narrow width) the caller is told, and takes differences.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"
#include "cuda/maps.cuh"

namespace hrel::cuda {

inline constexpr Index kLeastPositions = 32;  // of a map, from which products pay
inline constexpr float kLargestSquare = 16;   // |x_i|^2 / sigma^2: no distance errs by more than 1.6e-5 sigma^2
inline constexpr int kTileSize = 16;          // rows of a tile

// The lower triangle in tiles of 16 x 16, whole rows of them to a warp, so that a row is split into its high and low
// parts once. Rows from both ends of the triangle make the shares equal.
template <class Shape>
struct ProductTiles {
  static constexpr int kTiles = Shape::kSize / kTileSize, kRows = kTiles / Shape::kWarps;  // of all, of one warp
  static_assert(kRows % 2 == 0);

  static __device__ __forceinline__ int row(int slot, int warp) {
    int const from_end = slot / 2 * Shape::kWarps + warp;
    return slot % 2 == 0 ? from_end : kTiles - 1 - from_end;
  }
  // The most tiles that a warp holds of its row `slot`, and of the rows before it. Every pair of rows has as many.
  static constexpr HREL_HD int columns(int slot) {
    return slot % 2 == 0 ? (slot / 2 + 1) * Shape::kWarps : kTiles - slot / 2 * Shape::kWarps;
  }
  static constexpr HREL_HD int first(int slot) {
    return slot / 2 * (columns(0) + columns(1)) + (slot % 2 == 0 ? 0 : columns(slot - 1));
  }
  static constexpr int kTilesPerWarp = first(kRows);
};

template <class Shape>
struct ProductStage {
  // Staged at once: as many as registers allow. Each lane of a fragment takes kPerLane positions in a row, in one read.
  static constexpr int kPositions = Shape::kWarps == 4 ? 16 : 8, kPerLane = kPositions / 4;
  alignas(16) float values[2][Shape::kSize][kPositions];  // which take turns
  float squares[Shape::kSize];                            // |x_i|^2
};

// High and low parts of the kPerLane positions of a lane. The order of the positions within an instruction is free, as
// long as it is the same for rows and columns: with k = lane % 4, position 2 o is k of octet o, and 2 o + 1 is k + 4.
// They go to the elements `part` and `part` + kParts / 2 of the octets' fragments.
template <int kPerLane, int kParts>
__device__ __forceinline__ void split_fragment(float const* positions, std::uint32_t (&high)[kPerLane / 2][kParts],
                                               std::uint32_t (&low)[kPerLane / 2][kParts], int part) {
  static_assert(kPerLane == 2 || kPerLane == 4);
  float values[kPerLane];
  if constexpr (kPerLane == 4) {
    float4 const four = *reinterpret_cast<float4 const*>(positions);
    values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
  } else {
    float2 const two = *reinterpret_cast<float2 const*>(positions);
    values[0] = two.x, values[1] = two.y;
  }
#pragma unroll
  for (int octet = 0; octet < kPerLane / 2; ++octet) {
    split_tf32(values[octet * 2], high[octet][part], low[octet][part]);
    split_tf32(values[octet * 2 + 1], high[octet][part + kParts / 2], low[octet][part + kParts / 2]);
  }
}

// As squared_distances of cuda/gram.cuh, for positions begin .. end - 1. Returns whether the products are accurate
// enough, the same for all threads of the team, and calls store only then. They are refused where some |x_i|^2 exceeds
// largest_square or is not finite, and where some pair is so near, and so far from the first sample, that the error
// 2^-21 (|x_i|^2 + |x_j|^2) of its distance could change exp(-d2_ij / sigma^2) by more than 2^-20.
template <class Shape, class Store>
__device__ __forceinline__ bool squared_distances_by_products(Maps const& maps, Index const* order, Index filter,
                                                              Index begin, Index end, float scale, float largest_square,
                                                              ProductStage<Shape>& stage, int thread,
                                                              Store const& store) {
  using Tiles = ProductTiles<Shape>;
  constexpr int kPositions = ProductStage<Shape>::kPositions, kPerLane = ProductStage<Shape>::kPerLane;
  constexpr int kOctets = kPositions / 8, kRows = Tiles::kRows;
  constexpr int kReaders = kPositions / 4, kRowsAtOnce = Shape::kThreads / kReaders;  // threads of a row, rows of all
  constexpr int kRowsPerThread = Shape::kSize / kRowsAtOnce;
  int const n = static_cast<int>(maps.num_samples), warp = thread / kWarp, lane = thread % kWarp;
  int const group = lane / 4, member = lane % 4;  // of the lane in a fragment, see multiply_tf32

  float sums[Tiles::kTilesPerWarp][2][4];  // two fragments of 16 x 8 to a tile
#pragma unroll
  for (int t = 0; t < Tiles::kTilesPerWarp; ++t) {
#pragma unroll
    for (int q = 0; q < 4; ++q) sums[t][0][q] = sums[t][1][q] = 0;
  }

  // Four positions in a row for each thread. Rows past the last sample repeat the first one and positions past the end
  // the last one, weighed by 0: relative to the first sample both are 0.
  int const reader = thread % kReaders, first_row = thread / kReaders;
  Index const filter_offset = filter * maps.filter_stride;
  Index row_offset[kRowsPerThread];
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    int const row = first_row + i * kRowsAtOnce;
    row_offset[i] = order[row < n ? row : 0] * maps.sample_stride + filter_offset;
  }
  Index const first_sample[1] = {order[0] * maps.sample_stride + filter_offset};
  int const length = static_cast<int>(end - begin);     // positions are counted from `begin`
  std::uint32_t next[kRowsPerThread][4], center[1][4];  // the stage after the one in shared memory
  auto const fetch = [&](int first) {
    fetch_quads(maps, next, row_offset, begin, first + reader * 4, length);
    fetch_quads(maps, center, first_sample, begin, first + reader * 4, length);
  };

  fetch(0);
#pragma unroll 1
  for (int first = 0; first < length; first += kPositions) {
    float (&values)[Shape::kSize][kPositions] = stage.values[first / kPositions % 2];
    with_quads(maps, [&](auto const& value_of_quad) {
      float weight[4], shift[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        weight[q] = first + reader * 4 + q < length ? scale : 0;  // a power of two: products are exact
        shift[q] = value_of_quad(center[0], q) * -weight[q];
      }
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        float four[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) four[q] = value_of_quad(next[i], q) * weight[q] + shift[q];
        *reinterpret_cast<float4*>(&values[first_row + i * kRowsAtOnce][reader * 4]) =
            float4{four[0], four[1], four[2], four[3]};
      }
    });
    barrier<Shape::kThreads>();  // the stage is filled, and the other one free
    fetch(first + kPositions);

#pragma unroll
    for (int pair = 0; pair < kRows; pair += 2) {  // of rows, which share the columns' parts
      std::uint32_t a_high[2][kOctets][4], a_low[2][kOctets][4];
#pragma unroll
      for (int slot = 0; slot < 2; ++slot) {
        int const row = Tiles::row(pair + slot, warp) * kTileSize + group;
        split_fragment<kPerLane>(&values[row][member * kPerLane], a_high[slot], a_low[slot], 0);
        split_fragment<kPerLane>(&values[row + 8][member * kPerLane], a_high[slot], a_low[slot], 1);
      }
#pragma unroll
      for (int c = 0; c < Tiles::columns(pair + 1); ++c) {
        if (c > Tiles::row(pair + 1, warp)) continue;  // the longer one
        std::uint32_t b_high[2][kOctets][2], b_low[2][kOctets][2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          split_fragment<kPerLane>(&values[c * kTileSize + half * 8 + group][member * kPerLane], b_high[half],
                                   b_low[half], 0);
        }
#pragma unroll
        for (int slot = 0; slot < 2; ++slot) {
          if (c >= Tiles::columns(pair + slot) || c > Tiles::row(pair + slot, warp)) continue;
          // Summed from 0 for each stage: the tensor core rounds its running sum towards 0. Four chains, to hide its
          // latency.
          float part[2][4] = {}, small[2][4] = {};
#pragma unroll
          for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
            for (int half = 0; half < 2; ++half) multiply_tf32(small[half], a_low[slot][octet], b_high[half][octet]);
#pragma unroll
            for (int half = 0; half < 2; ++half) multiply_tf32(part[half], a_high[slot][octet], b_high[half][octet]);
#pragma unroll
            for (int half = 0; half < 2; ++half) multiply_tf32(small[half], a_high[slot][octet], b_low[half][octet]);
          }
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            sums[Tiles::first(pair + slot) + c][0][q] += part[0][q] + small[0][q];
            sums[Tiles::first(pair + slot) + c][1][q] += part[1][q] + small[1][q];
          }
        }
      }
    }
  }

  // Calls visit(row, column, sum) for the thread's elements of its tiles, padding and upper triangle included.
  auto const for_each_sum = [&](auto const& visit) {
#pragma unroll
    for (int slot = 0; slot < kRows; ++slot) {
#pragma unroll
      for (int c = 0; c < Tiles::columns(slot); ++c) {
        if (c > Tiles::row(slot, warp)) continue;
        int const row = Tiles::row(slot, warp) * kTileSize + group, column = c * kTileSize + member * 2;
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          visit(row + q / 2 * 8, column + q % 2, sums[Tiles::first(slot) + c][0][q]);
          visit(row + q / 2 * 8, column + q % 2 + 8, sums[Tiles::first(slot) + c][1][q]);
        }
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
