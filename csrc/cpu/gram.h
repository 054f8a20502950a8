// Squared distances d2_ij = |x_i - x_j|^2 of the maps of several filters at once, one filter a lane. The differences
// are squared as they are: the product form |x_i|^2 + |x_j|^2 - 2 x_i.x_j would cancel for outliers and offsets.
// SPDX-License-Identifier: MIT
#pragma once
#include "cpu/lanes.h"
#include "cpu/triangle.h"
#include "numerics/views.h"

namespace hrel::cpu::HREL_LEVEL {

inline constexpr Index kStagedPositions = 32;
inline constexpr Index kBlockTiles = 2;  // two blocks of rows, 8 KB each at 32 positions, stay in the first-level cache

HREL_HD Index staging_elements(Index num_samples) { return padded(num_samples) * kStagedPositions; }

// One filter a lane, of filters first_filter .. first_filter + num_filters - 1; lanes past them repeat the first one.
template <class Scalar, class Pack>
struct FilterSource {
  using Value = typename Lanes<Pack>::Scalar;
  ActivationView<Scalar> acts;
  Index first_filter, num_filters;
  Pack scale;  // powers of two, so that scaling rounds nothing
  Index num_positions = acts.num_features;

  // Calls write(p, lane, value) for the positions first .. first + positions - 1 of one sample.
  template <class Write>
  HREL_HD void copy(Index sample, Index first, Index positions, Write const& write) const {
    Scalar const* const map = acts.map(sample, first_filter) + first * acts.feature_stride;
    if (acts.filter_stride == 1 && num_filters == Lanes<Pack>::kCount) {  // channels_last: neighbours are neighbours
      for (Index p = 0; p < positions; ++p) {
        for (int lane = 0; lane < Lanes<Pack>::kCount; ++lane) {
          write(p, lane, static_cast<Value>(map[p * acts.feature_stride + lane]) * scale[lane]);
        }
      }
      return;
    }
    for (int lane = 0; lane < Lanes<Pack>::kCount; ++lane) {
      Scalar const* const row = map + (lane < num_filters ? lane : 0) * acts.filter_stride;
      for (Index p = 0; p < positions; ++p)
        write(p, lane, static_cast<Value>(row[p * acts.feature_stride]) * scale[lane]);
    }
  }
};

// The values begin .. end - 1 of a sample's whole output (F D values), dealt to the lanes in turn: their sum over the
// lanes is the squared distance of the layer. Any order of the F D values will do, so memory order is taken where they
// are dense.
template <class Scalar, class Pack>
struct LayerSource {
  using Value = typename Lanes<Pack>::Scalar;
  ActivationView<Scalar> acts;
  Index begin, end;
  Index num_positions = (end - begin + Lanes<Pack>::kCount - 1) / Lanes<Pack>::kCount;

  template <class Write>
  HREL_HD void copy(Index sample, Index first, Index positions, Write const& write) const {
    constexpr int kLanes = Lanes<Pack>::kCount;
    bool const dense = (acts.feature_stride == 1 && acts.filter_stride == acts.num_features) ||
                       (acts.filter_stride == 1 && acts.feature_stride == acts.num_filters);
    Scalar const* const output = acts.map(sample, 0);
    for (Index p = 0; p < positions; ++p) {
      Index const start = begin + (first + p) * kLanes;
      for (int lane = 0; lane < kLanes; ++lane) {
        Index const k = start + lane;
        Index const offset =
            dense ? k : k / acts.num_features * acts.filter_stride + k % acts.num_features * acts.feature_stride;
        write(p, lane, k < end ? static_cast<Value>(output[offset]) : Value(0));
      }
    }
  }
};

// Interleaved copy of `positions` values of every sample: [tile of samples][position][sample in tile], lanes inside.
template <class Scalar, class Pack, class Source>
HREL_HD void stage(ActivationView<Scalar> const& acts, Index const* order, Source const& source, Index first,
                   Index positions, Pack* staged) {
  using L = Lanes<Pack>;
  for (Index row = 0; row < padded(acts.num_samples); ++row) {
    Pack* const out = staged + row / kTile * kTile * positions + row % kTile;
    if (row >= acts.num_samples) {
      for (Index p = 0; p < positions; ++p) out[p * kTile] = Pack{};
      continue;
    }
    source.copy(order[row], first, positions,
                [&](Index p, int lane, typename L::Scalar value) { out[p * kTile][lane] = value; });
  }
}

// One 4 x 4 tile of squared distances over the staged positions.
template <class Pack>
HREL_HD void add_squared_distances(Pack const* rows, Pack const* columns, Index positions, Pack* tile) {
  constexpr int kRowsAtOnce = kRegisters >= 32 ? 4 : 2;  // accumulators that fit the registers
#pragma GCC unroll 2
  for (int first = 0; first < kTile; first += kRowsAtOnce) {
    Pack sum[kRowsAtOnce * kTile];
#pragma GCC unroll 16
    for (int q = 0; q < kRowsAtOnce * kTile; ++q) sum[q] = tile[first * kTile + q];
    for (Index p = 0; p < positions; ++p) {
#pragma GCC unroll 4
      for (int i = 0; i < kRowsAtOnce; ++i) {
        Pack const a = rows[p * kTile + first + i];
#pragma GCC unroll 4
        for (int j = 0; j < kTile; ++j) {
          Pack const difference = a - columns[p * kTile + j];
          sum[i * kTile + j] += difference * difference;
        }
      }
    }
#pragma GCC unroll 16
    for (int q = 0; q < kRowsAtOnce * kTile; ++q) tile[first * kTile + q] = sum[q];
  }
}

// triangle = d2 over all positions of `source`; the diagonal is 0, or NaN where a value is NaN or infinite.
template <class Scalar, class Pack, class Source>
HREL_HD void squared_distances(ActivationView<Scalar> const& acts, Index const* order, Source const& source,
                               Pack* staged, Pack* triangle) {
  Index const elements = triangle_elements(acts.num_samples), tiles = num_tiles(acts.num_samples);
  for (Index q = 0; q < elements; ++q) triangle[q] = Pack{};
  for (Index first = 0; first < source.num_positions; first += kStagedPositions) {
    Index const rest = source.num_positions - first;
    Index const positions = rest < kStagedPositions ? rest : kStagedPositions;
    stage<Scalar, Pack>(acts, order, source, first, positions, staged);
    for (Index block_row = 0; block_row < tiles; block_row += kBlockTiles) {
      Index const end_row = block_row + kBlockTiles < tiles ? block_row + kBlockTiles : tiles;
      for (Index block_column = 0; block_column <= block_row; block_column += kBlockTiles) {
        for (Index row = block_row; row < end_row; ++row) {
          Index const end = block_column + kBlockTiles <= row ? block_column + kBlockTiles : row + 1;
          for (Index column = block_column; column < end; ++column) {
            add_squared_distances(staged + row * kTile * positions, staged + column * kTile * positions, positions,
                                  triangle + tile_offset(row, column));
          }
        }
      }
    }
  }
}

}  // namespace hrel::cpu::HREL_LEVEL
