// Squared distances by products on the tensor cores, for maps of many positions:
//   d2_ij = |x_i|^2 + |x_j|^2 - 2 x_i . x_j,  x relative to the first sample, in 3 x TF32:  x = hi + lo,
//   x_i . x_j ~ hi_i hi_j + hi_i lo_j + lo_i hi_j, whose error is about 2^-21 (|x_i|^2 + |x_j|^2).
// Where that is too much against sigma^2 (an outlier, a narrow width) the caller is told, and takes differences.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"
#include "cuda/maps.cuh"
#include "cuda/tiles.cuh"

namespace hrel::cuda {

inline constexpr float kLargestSquare = 16;  // |x_i|^2 / sigma^2: no distance errs by more than 1.6e-5 sigma^2

// The lower triangle in tiles of 16 x 16: warp w holds the rows w and kTiles - 1 - w of them, which have kTiles + 1
// tiles together. The first w + 1 are those of the row w, the others those of the longer row from its end.
template <class Shape>
struct ProductTiles {
  static constexpr int kTiles = Shape::kSize / kTileSize, kTilesPerWarp = kTiles + 1;
  static_assert(kTiles == 2 * Shape::kWarps);

  // Known for all warps but for the tiles 1 .. kWarps - 1.
  static __device__ __forceinline__ bool of_shorter_row(int tile, int warp) {
    return tile == 0 || (tile < Shape::kWarps && tile <= warp);
  }
  static __device__ __forceinline__ int row_of(bool shorter, int warp) { return shorter ? warp : kTiles - 1 - warp; }
  static __device__ __forceinline__ int row(int tile, int warp) { return row_of(of_shorter_row(tile, warp), warp); }
  static __device__ __forceinline__ int column(int tile, int warp) {
    return of_shorter_row(tile, warp) ? tile : kTiles - tile;
  }
};

template <class Shape>
struct ProductStage {
  static constexpr int kPositions = 8;  // of one instruction
  static constexpr int kPitch = 12;     // the elements of a fragment lie in 32 different banks
  struct alignas(16) Parts {
    std::uint32_t high[Shape::kSize][kPitch], low[Shape::kSize][kPitch];
  };
  Parts parts[2];               // which take turns
  float squares[Shape::kSize];  // |x_i|^2
};

// As squared_distances of cuda/gram.cuh, for positions begin .. end - 1. Returns whether the products are accurate
// enough, the same for all threads of the team, and calls store only then. They are refused where some |x_i|^2 exceeds
// largest_square or is not finite, and where some pair is so near, and so far from the first sample, that the error
// 2^-21 (|x_i|^2 + |x_j|^2) of its distance could change exp(-d2_ij / sigma^2) by more than 2^-20.
template <class Shape, class Store>
__device__ __forceinline__ bool squared_distances_by_products(Maps const& maps, Index const* order, int filter,
                                                              Index begin, Index end, float scale, float largest_square,
                                                              ProductStage<Shape>& stage, int thread,
                                                              Store const& store) {
  using Tiles = ProductTiles<Shape>;
  using Parts = typename ProductStage<Shape>::Parts;
  constexpr int kPositions = ProductStage<Shape>::kPositions;
  constexpr int kReaders = kPositions / 4, kRowsAtOnce = Shape::kThreads / kReaders;  // threads of a row, rows of all
  constexpr int kRowsPerThread = Shape::kSize / kRowsAtOnce;
  int const n = static_cast<int>(maps.num_samples), warp = thread / kWarp, lane = thread % kWarp;
  int const group = lane / 4, member = lane % 4, pair = member * 2;  // of the lane in a fragment, see multiply_tf32

  float sums[Tiles::kTilesPerWarp][2][4];  // two fragments of 16 x 8 to a tile
#pragma unroll
  for (int t = 0; t < Tiles::kTilesPerWarp; ++t) {
#pragma unroll
    for (int q = 0; q < 4; ++q) sums[t][0][q] = sums[t][1][q] = 0;
  }

  // Four positions in a row for each thread. Rows past the last sample repeat the first one and positions past the end
  // the last one, weighed by 0: relative to the first sample both are 0.
  int const reader = thread % kReaders, first_row = thread / kReaders;
  Index const filter_offset = filter * maps.filter_stride + begin * maps.inner_stride;
  Index row_offset[kRowsPerThread];
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    int const row = first_row + i * kRowsAtOnce;
    row_offset[i] = order[row < n ? row : 0] * maps.sample_stride + filter_offset;
  }
  Index const first_sample[1] = {order[0] * maps.sample_stride + filter_offset};
  int const length = static_cast<int>(end - begin);  // positions are counted from `begin`
  std::uint32_t next[kRowsPerThread][4];             // the stage after the one in shared memory
  auto const fetch = [&](int first) { fetch_quads(maps, next, row_offset, first + reader * 4, length); };

  fetch(0);
#pragma unroll 1
  for (int first = 0; first < length; first += kPositions) {
    Parts& parts = stage.parts[first / kPositions % 2];
    std::uint32_t center[1][4];  // which is near: the first row has been fetched before
    fetch_quads(maps, center, first_sample, first + reader * 4, length);
    with_quads(maps, [&](auto const& value_of_quad) {
      float weight[4], shift[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        weight[q] = first + reader * 4 + q < length ? scale : 0;  // a power of two: products are exact
        shift[q] = value_of_quad(center[0], q) * -weight[q];
      }
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        uint4 high, low;
        split_tf32(value_of_quad(next[i], 0) * weight[0] + shift[0], high.x, low.x);
        split_tf32(value_of_quad(next[i], 1) * weight[1] + shift[1], high.y, low.y);
        split_tf32(value_of_quad(next[i], 2) * weight[2] + shift[2], high.z, low.z);
        split_tf32(value_of_quad(next[i], 3) * weight[3] + shift[3], high.w, low.w);
        *reinterpret_cast<uint4*>(&parts.high[first_row + i * kRowsAtOnce][reader * 4]) = high;
        *reinterpret_cast<uint4*>(&parts.low[first_row + i * kRowsAtOnce][reader * 4]) = low;
      }
    });
    barrier<Shape::kThreads>();  // the stage is filled, and the other one free
    fetch(first + kPositions);

    std::uint32_t a_high[2][4], a_low[2][4];  // of the longer and of the shorter row
#pragma unroll
    for (int shorter = 0; shorter < 2; ++shorter) {
      int const row = Tiles::row_of(shorter == 1, warp) * kTileSize + group;
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        a_high[shorter][q] = parts.high[row + q % 2 * 8][member + q / 2 * 4];
        a_low[shorter][q] = parts.low[row + q % 2 * 8][member + q / 2 * 4];
      }
    }
    // Without a branch, so that the tiles hide each other's latency.
#pragma unroll
    for (int tile = 0; tile < Tiles::kTilesPerWarp; ++tile) {
      bool const shorter = Tiles::of_shorter_row(tile, warp);
      std::uint32_t high[4], low[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        high[q] = shorter ? a_high[1][q] : a_high[0][q];
        low[q] = shorter ? a_low[1][q] : a_low[0][q];
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int const row = Tiles::column(tile, warp) * kTileSize + half * 8 + group;
        std::uint32_t const b_high[2] = {parts.high[row][member], parts.high[row][member + 4]};
        std::uint32_t const b_low[2] = {parts.low[row][member], parts.low[row][member + 4]};
        float part[4];  // from 0 for each stage: the tensor core rounds its running sum towards 0
        product_tf32(part, low, b_high);
        multiply_tf32(part, high, b_low);
        multiply_tf32(part, high, b_high);
#pragma unroll
        for (int q = 0; q < 4; ++q) sums[tile][half][q] += part[q];
      }
    }
  }

  // Element (i, j) of the 2 x 4 of a tile is that of row group + j / 2 * 8, column pair + j % 2 + i * 8.
  bool refused = false;
#pragma unroll
  for (int t = 0; t < Tiles::kTilesPerWarp; ++t) {
    if (Tiles::column(t, warp) != Tiles::row(t, warp) || group / 2 != pair / 2) continue;
    // This lane has two elements of the diagonal.
    float const upper = group % 2 == 0 ? sums[t][0][0] : sums[t][0][1];
    float const lower = group % 2 == 0 ? sums[t][1][2] : sums[t][1][3];
    float* const squares = &stage.squares[Tiles::column(t, warp) * kTileSize + group];
    squares[0] = upper;
    squares[8] = lower;
    refused = !(upper <= largest_square) || !(lower <= largest_square) || refused;  // NaN is
  }
  if (any_of_team<Shape::kThreads>(refused)) return false;  // which is a barrier: the squares are written
  // An error of the distance counts for exp(-t) of it, t = d2 / sigma^2, so that near pairs far from the first sample
  // count most; e^t >= 1 + t + t^2 / 2.
  float const variance = largest_square / kLargestSquare;  // sigma^2, or the share of it that this part may take
  float const inverse_variance = 1 / variance;
#pragma unroll
  for (int t = 0; t < Tiles::kTilesPerWarp; ++t) {
    int const row = Tiles::row(t, warp), column = Tiles::column(t, warp);
    float const of_row[2] = {stage.squares[row * kTileSize + group], stage.squares[row * kTileSize + group + 8]};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float2 const of_columns = *reinterpret_cast<float2 const*>(&stage.squares[column * kTileSize + i * 8 + pair]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        bool const same = row == column && i == j / 2 && group == pair + j % 2;
        float const squares = of_row[j / 2] + (j % 2 == 0 ? of_columns.x : of_columns.y);
        float const distance = fmaxf(squares - 2 * sums[t][i][j], 0), ratio = distance * inverse_variance;
        sums[t][i][j] = same ? 0 : distance;
        refused = refused || (!same && squares > 2 * variance * (1 + ratio * (1 + ratio * 0.5f)));
      }
    }
  }
  if (any_of_team<Shape::kThreads>(refused)) return false;  // a barrier: `store` may write over the stage
#pragma unroll
  for (int t = 0; t < Tiles::kTilesPerWarp; ++t) {
    int const offset = tile_offset(Tiles::row(t, warp), Tiles::column(t, warp)) + group * kHalfColumns + pair;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      store(offset + i * kHalfElements, float2{sums[t][i][0], sums[t][i][1]});
      store(offset + i * kHalfElements + kHalfElements / 2, float2{sums[t][i][2], sums[t][i][3]});
    }
  }
  return true;
}

}  // namespace hrel::cuda
