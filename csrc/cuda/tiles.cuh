// A symmetric matrix as the tensor cores read it: the lower triangle in tiles of 16 x 16, each of two halves of 16 rows by
// 8 columns, tiles on the diagonal whole. Rows and columns past the matrix, up to the end of a tile, are 0.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"

namespace hrel::cuda {

inline constexpr int kTileSize = 16, kTileElements = kTileSize * kTileSize;
inline constexpr int kHalfColumns = 8, kHalfElements = kTileSize * kHalfColumns;

HREL_HD constexpr int num_tiles(int n) { return (n + kTileSize - 1) / kTileSize; }
HREL_HD constexpr int tiled_elements(int n) { return num_tiles(n) * (num_tiles(n) + 1) / 2 * kTileElements; }

// Where the tile (row, column), column <= row, begins.
HREL_HD constexpr int tile_offset(int row, int column) { return (row * (row + 1) / 2 + column) * kTileElements; }

// Element (row, column) of a tile on or below the diagonal lies at the sum of these.
HREL_HD constexpr int tiled_row(int row) {
  return tile_offset(row / kTileSize, 0) + row % kTileSize * kHalfColumns;
}
HREL_HD constexpr int tiled_column(int column) {
  return column / kTileSize * kTileElements + column / kHalfColumns % 2 * kHalfElements + column % kHalfColumns;
}
HREL_HD constexpr int tiled_offset(int row, int column) { return tiled_row(row) + tiled_column(column); }

// Calls visit(offsets, rows, columns) for all elements of the tiles of n rows, padding included, shared out among the
// threads: tiles by warps, kAtOnce elements of each under way at once.
inline constexpr int kAtOnce = kTileElements / kWarp;
template <int kThreads, class Visit>
__device__ __forceinline__ void for_each_tile(int n, int thread, Visit const& visit) {
  int const lane = thread % kWarp, tiles = num_tiles(n) * (num_tiles(n) + 1) / 2;
  int tile_row = 0, first = 0;  // the number of the first tile of the row
#pragma unroll 1
  for (int tile = thread / kWarp; tile < tiles; tile += kThreads / kWarp) {
    while (tile > first + tile_row) first += ++tile_row;
    int offset[kAtOnce], row[kAtOnce], column[kAtOnce];
#pragma unroll
    for (int q = 0; q < kAtOnce; ++q) {
      int const place = q * kWarp + lane;
      offset[q] = tile * kTileElements + place;
      row[q] = tile_row * kTileSize + place % kHalfElements / kHalfColumns;
      column[q] = (tile - first) * kTileSize + place / kHalfElements * kHalfColumns + place % kHalfColumns;
    }
    visit(offset, row, column);
  }
}

// How the elements of a symmetric matrix lie in memory: for_each calls visit(offset, row, column), shared out among the
// threads.
struct Tiled {
  template <int kThreads, class Visit>
  static __device__ __forceinline__ void for_each(int n, int thread, Visit const& visit) {
    for_each_tile<kThreads>(n, thread, [&](auto const& offset, auto const& row, auto const& column) {
#pragma unroll
      for (int q = 0; q < kAtOnce; ++q) visit(offset[q], row[q], column[q]);
    });
  }
};
// The packed lower triangle: rows by warps, columns by lanes.
struct Packed {
  template <int kThreads, class Visit>
  static __device__ __forceinline__ void for_each(int n, int thread, Visit const& visit) {
    for (int row = thread / kWarp; row < n; row += kThreads / kWarp) {
      for (int column = thread % kWarp; column <= row; column += kWarp) visit(packed_offset(row, column), row, column);
    }
  }
};

}  // namespace hrel::cuda
