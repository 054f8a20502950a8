// A symmetric matrix as its lower triangle in 4 x 4 tiles, row of tiles by row of tiles. Tiles on the diagonal are kept
// whole, and the order is rounded up to a multiple of 4: no loop over elements has an edge.
// SPDX-License-Identifier: MIT
#pragma once
#include <cmath>

#include "numerics/config.h"

namespace hrel::cpu {

inline constexpr Index kTile = 4;

HREL_HD Index num_tiles(Index size) { return (size + kTile - 1) / kTile; }
HREL_HD Index padded(Index size) { return num_tiles(size) * kTile; }
HREL_HD Index tile_offset(Index tile_row, Index tile_column) {
  return (tile_row * (tile_row + 1) / 2 + tile_column) * kTile * kTile;
}
HREL_HD Index triangle_elements(Index size) { return tile_offset(num_tiles(size), 0); }

// Of element (row, column), column <= row.
HREL_HD Index element_offset(Index row, Index column) {
  return tile_offset(row / kTile, column / kTile) + row % kTile * kTile + column % kTile;
}

// Calls visit(offset, row, column, copies) for every element that the triangle stores: copies says how many elements of
// the full matrix it stands for (2 below the diagonal tiles, else 1). Rows and columns past `size` are padding.
template <class Visit>
HREL_HD void for_each_element(Index size, Visit const& visit) {
  Index offset = 0;
  for (Index tile_row = 0; tile_row < num_tiles(size); ++tile_row) {
    for (Index tile_column = 0; tile_column <= tile_row; ++tile_column) {
      for (Index q = 0; q < kTile * kTile; ++q, ++offset) {
        visit(offset, tile_row * kTile + q / kTile, tile_column * kTile + q % kTile, tile_row == tile_column ? 1 : 2);
      }
    }
  }
}

// Sets the elements of rows and columns past `size` to 0: they stand in the last row of tiles.
template <class T>
HREL_HD void clear_padding(T* triangle, Index size) {
  Index const last = num_tiles(size) - 1;
  for (Index q = tile_offset(last, 0); q < tile_offset(last + 1, 0); ++q) {
    bool const on_diagonal = q >= tile_offset(last, last);
    Index const row = last * kTile + q / kTile % kTile, column = last * kTile + q % kTile;
    if (row >= size || (on_diagonal && column >= size)) triangle[q] = T{};
  }
}

// Mean of |x_i - x_j| over all N^2 pairs; NaN where a diagonal element is.
template <class Element>
HREL_HD double mean_distance(Index n, Element const& squared_distance) {
  double sum = 0;
  for_each_element(n, [&](Index offset, Index row, Index column, int copies) __attribute__((always_inline)) {
    if (row < n && column < n) sum += copies * std::sqrt(static_cast<double>(squared_distance(offset)));
  });
  return sum / (static_cast<double>(n) * static_cast<double>(n));
}

}  // namespace hrel::cpu
