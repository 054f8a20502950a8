// Squared distances between the maps of one filter, or between the outputs of a whole layer, samples in lanes: for maps
// of many positions, whose values are then read in long runs, and whose differences keep both the multipliers and the
// adders busy. Positions are summed one after the other, as in cpu/gram.h, so that both give the same bits.
// SPDX-License-Identifier: MIT
#pragma once
#include "cpu/lanes.h"
#include "cpu/scratch.h"
#include "cpu/triangle.h"
#include "numerics/views.h"

namespace hrel::cpu::HREL_LEVEL {

inline constexpr Index kBlockPositions = 128;  // 64 KB of packed float32 values at N = 128
// Sums in registers, with room for the columns and a difference.
inline constexpr int kBlockRows = kRegisters >= 32 ? 8 : 4, kBlockPacks = kRegisters >= 32 ? 3 : 2;

// The values of one map: position p of a sample lies at data + sample * sample_stride + offset(p).
template <class Scalar>
struct MapView {
  Scalar const* data;
  Index num_samples, num_positions, sample_stride;
  Index inner_size, inner_stride, outer_stride;

  HREL_HD bool is_contiguous() const { return inner_stride == 1 && inner_size == num_positions; }
  HREL_HD Index offset(Index p) const { return p / inner_size * outer_stride + p % inner_size * inner_stride; }
};

template <class Scalar>
HREL_HD MapView<Scalar> map_of_filter(ActivationView<Scalar> const& acts, Index filter) {
  return {acts.map(0, filter),
          acts.num_samples,
          acts.num_features,
          acts.sample_stride,
          acts.num_features,
          acts.feature_stride,
          0};
}

// All outputs of the layer. Any order of the F D values will do, so memory order is taken where they are dense.
template <class Scalar>
HREL_HD MapView<Scalar> map_of_layer(ActivationView<Scalar> const& acts) {
  Index const values = acts.num_filters * acts.num_features;
  bool const dense = (acts.feature_stride == 1 && acts.filter_stride == acts.num_features) ||
                     (acts.filter_stride == 1 && acts.feature_stride == acts.num_filters);
  if (dense) return {acts.data, acts.num_samples, values, acts.sample_stride, values, 1, 0};
  return {acts.data,           acts.num_samples,  values, acts.sample_stride, acts.num_features,
          acts.feature_stride, acts.filter_stride};
}

// Scratch of one map.
template <class Pack>
struct MapScratch {
  static constexpr Index kLanes = Lanes<Pack>::kCount, kStep = kBlockRows > kLanes ? kBlockRows : kLanes;

  MapScratch(Scratch& memory, Index n)
      : num_rows((n + kStep - 1) / kStep * kStep),
        packs(num_rows / kLanes),
        panel(memory.take<Pack>(packs * kBlockPositions)),
        squares(memory.take<Pack>(num_rows * packs)) {}

  Index num_rows, packs;  // samples rounded up, and the same in packs
  Pack* panel;            // [packs, kBlockPositions] one sample a lane
  Pack* squares;          // [num_rows, packs] the lower triangle of d2

  HREL_HD typename Lanes<Pack>::Scalar const* row(Index i) const {
    return reinterpret_cast<typename Lanes<Pack>::Scalar const*>(squares + i * packs);
  }
};

// panel = positions first .. first + positions - 1 of all samples, times scale.
template <class Pack, class Scalar>
HREL_HD void pack_positions(MapView<Scalar> const& map, Index const* order, Index first, Index positions,
                            typename Lanes<Pack>::Scalar scale, MapScratch<Pack> const& s) {
  using Value = typename Lanes<Pack>::Scalar;
  constexpr int kLanes = Lanes<Pack>::kCount;
  bool const contiguous = map.is_contiguous();
  for (Index pack = 0; pack < s.packs; ++pack) {
    Pack* __restrict const out = s.panel + pack * kBlockPositions;
    Scalar const* sample[kLanes];  // lanes past the last sample repeat the first one
    for (int lane = 0; lane < kLanes; ++lane) {
      Index const i = pack * kLanes + lane;
      sample[lane] = map.data + order[i < map.num_samples ? i : 0] * map.sample_stride + (contiguous ? first : 0);
    }
    if (contiguous) {
      interleave(sample, 1, positions, splat<Pack>(scale), out, 1);
      continue;
    }
    for (Index p = 0; p < positions; ++p) {
      Index const place = map.offset(first + p);
      Pack values;
#pragma GCC unroll 8
      for (int lane = 0; lane < kLanes; ++lane) values[lane] = static_cast<Value>(sample[lane][place]);
      out[p] = values * scale;
    }
  }
}

// kBlockRows rows and kPacks packs of columns: squares += (row - column)^2 over the packed positions.
template <int kPacks, class Pack>
HREL_HD void add_squared_differences(typename Lanes<Pack>::Scalar const* rows, Pack const* columns, Index positions,
                                     Pack* squares, Index packs) {
  using Value = typename Lanes<Pack>::Scalar;
  constexpr int kLanes = Lanes<Pack>::kCount;
  Pack sum[kBlockRows][kPacks];
#pragma GCC unroll 8
  for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 3
    for (int c = 0; c < kPacks; ++c) sum[r][c] = squares[r * packs + c];
  }
  for (Index p = 0; p < positions; ++p) {
    Pack column[kPacks];
#pragma GCC unroll 3
    for (int c = 0; c < kPacks; ++c) column[c] = columns[c * kBlockPositions + p];
#pragma GCC unroll 8
    for (int r = 0; r < kBlockRows; ++r) {
      Value const row = rows[(r / kLanes * kBlockPositions + p) * kLanes + r % kLanes];
#pragma GCC unroll 3
      for (int c = 0; c < kPacks; ++c) {
        Pack const difference = row - column[c];
        sum[r][c] += difference * difference;
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 3
    for (int c = 0; c < kPacks; ++c) squares[r * packs + c] = sum[r][c];
  }
}

// s.squares = d2 over positions begin .. end - 1; the diagonal is 0, or NaN where a value is NaN or infinite.
template <class Pack, class Scalar>
HREL_HD void squared_distances_of_map(MapView<Scalar> const& map, Index const* order, Index begin, Index end,
                                      typename Lanes<Pack>::Scalar scale, MapScratch<Pack> const& s) {
  using Value = typename Lanes<Pack>::Scalar;
  constexpr int kLanes = Lanes<Pack>::kCount;
  for (Index q = 0; q < s.num_rows * s.packs; ++q) s.squares[q] = Pack{};
  for (Index first = begin; first < end; first += kBlockPositions) {
    Index const positions = end - first < kBlockPositions ? end - first : kBlockPositions;
    pack_positions(map, order, first, positions, scale, s);
    for (Index i = 0; i < s.num_rows; i += kBlockRows) {
      Value const* const rows = reinterpret_cast<Value const*>(s.panel + i / kLanes * kBlockPositions) + i % kLanes;
      Index const past_diagonal = (i + kBlockRows + kLanes - 1) / kLanes;
      Pack* const squares = s.squares + i * s.packs;
      Index c = 0;
      for (; c + kBlockPacks <= past_diagonal; c += kBlockPacks) {
        add_squared_differences<kBlockPacks>(rows, s.panel + c * kBlockPositions, positions, squares + c, s.packs);
      }
      if (c + 2 == past_diagonal) {
        add_squared_differences<2>(rows, s.panel + c * kBlockPositions, positions, squares + c, s.packs);
      } else if (c + 1 == past_diagonal) {
        add_squared_differences<1>(rows, s.panel + c * kBlockPositions, positions, squares + c, s.packs);
      }
    }
  }
}

}  // namespace hrel::cpu::HREL_LEVEL
