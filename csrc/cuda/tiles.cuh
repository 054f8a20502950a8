// A symmetric matrix as the tensor cores read it: the lower triangle in tiles of 16 x 16, each of two halves of 16 rows
// by 8 columns, tiles on the diagonal whole. Rows and columns past the matrix, up to the end of a tile, are 0.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"

namespace hrel::cuda {

inline constexpr int kTileSize = 16, kTileElements = kTileSize * kTileSize;
inline constexpr int kHalfColumns = 8, kHalfElements = kTileSize * kHalfColumns;

// Numbers of rows and columns are unsigned below, where they are divided: that of a signed number takes more.
HREL_HD constexpr int num_tiles(int n) {
  return static_cast<int>((static_cast<unsigned>(n) + kTileSize - 1) / kTileSize);
}
HREL_HD constexpr int tiled_elements(int n) { return num_tiles(n) * (num_tiles(n) + 1) / 2 * kTileElements; }

// Where the tile (row, column), column <= row, begins.
HREL_HD constexpr int tile_offset(unsigned row, unsigned column) {
  return static_cast<int>((row * (row + 1) / 2 + column) * kTileElements);
}

// Element (row, column) of a tile on or below the diagonal lies at the sum of these.
HREL_HD constexpr int tiled_row(unsigned row) {
  return tile_offset(row / kTileSize, 0) + static_cast<int>(row % kTileSize * kHalfColumns);
}
HREL_HD constexpr int tiled_column(unsigned column) {
  return static_cast<int>(column / kHalfColumns * kHalfElements + column % kHalfColumns);
}
HREL_HD constexpr int tiled_offset(unsigned row, unsigned column) { return tiled_row(row) + tiled_column(column); }

// Calls visit(offsets, rows, columns) for all elements of the tiles of n rows, padding included, shared out among the
// threads: tiles by warps, kAtOnce elements of each under way at once.
inline constexpr int kAtOnce = kTileElements / kWarp;
template <int kThreads, class Visit>
__device__ __forceinline__ void for_each_tile(int n, int thread, Visit const& visit) {
  int const tiles = num_tiles(n) * (num_tiles(n) + 1) / 2;
  unsigned const lane = static_cast<unsigned>(thread) % kWarp;
  int const row_of_lane = static_cast<int>(lane / kHalfColumns), column_of_lane = static_cast<int>(lane % kHalfColumns);
  constexpr int kRowsOfWarp = kWarp / kHalfColumns;
  int tile_row = 0, first = 0;  // the number of the first tile of the row
#pragma unroll 1
  for (int tile = thread / kWarp; tile < tiles; tile += kThreads / kWarp) {
    while (tile > first + tile_row) first += ++tile_row;
    int offset[kAtOnce], row[kAtOnce], column[kAtOnce];
#pragma unroll
    for (int q = 0; q < kAtOnce; ++q) {
      offset[q] = tile * kTileElements + q * kWarp + static_cast<int>(lane);
      row[q] = tile_row * kTileSize + q % (kAtOnce / 2) * kRowsOfWarp + row_of_lane;
      column[q] = (tile - first) * kTileSize + q / (kAtOnce / 2) * kHalfColumns + column_of_lane;
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
