// Squared distances between the maps of one filter, or between the outputs of a whole layer, samples in lanes: for maps
// of many positions, whose values are then read in long runs. In float32 by products, one multiply-add for each pair
// and position,
//   d2_ij = |x_i|^2 + |x_j|^2 - 2 x_i . x_j,  x relative to the mean of a few samples,
// whose error is about 2^-21 (|x_i|^2 + |x_j|^2). Where that is too much (an outlier, a narrow width), and in float64,
// by differences. SPDX-License-Identifier: MIT
#pragma once
#include <type_traits>

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

// Scratch of one map; `Pack` is that of the group, here samples lie in the widest packs.
template <class Pack>
struct MapScratch {
  using Wide = WidePack<Pack>;
  using Value = typename Lanes<Pack>::Scalar;
  static constexpr Index kLanes = Lanes<Wide>::kCount, kStep = kBlockRows > kLanes ? kBlockRows : kLanes;

  MapScratch(Scratch& memory, Index n, Index num_maps = 1)
      : num_rows((n + kStep - 1) / kStep * kStep),
        packs(num_rows / kLanes),
        panels(memory.take<Wide>(2 * packs * kBlockPositions)),
        centre(memory.take<Value>(kBlockPositions)),
        squares(memory.take<Wide>(num_maps * num_squares())) {}

  Index num_rows, packs;  // samples rounded up, and the same in packs
  Wide* panels;           // [2, packs, kBlockPositions] one sample a lane
  Value* centre;          // [kBlockPositions] that positions are relative to
  Wide* squares;          // [num_maps, num_rows, packs] the lower triangle of x_i . x_j, then of d2, of the first map

  HREL_HD Index num_squares() const { return num_rows * packs; }
  // The scratch of map k, which has squares of its own.
  HREL_HD MapScratch of_map(Index k) const {
    MapScratch own = *this;
    own.squares += k * num_squares();
    return own;
  }
  HREL_HD Value const* row(Index i) const { return reinterpret_cast<Value const*>(squares + i * packs); }
};

// What is summed over the positions.
struct Product {
  static constexpr bool kCentred = true;  // the smaller the values, the less a difference of products loses
  template <class Row, class Pack>
  HREL_HD static void add(Row row, Pack column, Pack& sum) {
    sum += row * column;
  }
};
struct SquaredDifference {
  static constexpr bool kCentred = false;
  template <class Row, class Pack>
  HREL_HD static void add(Row row, Pack column, Pack& sum) {
    Pack const difference = row - column;
    sum += difference * difference;
  }
};

// Where the samples of one pack begin in memory, one a lane; lanes past the last sample repeat the first one.
template <class Pack, class Scalar>
HREL_HD void samples_of_pack(MapView<Scalar> const& map, Index const* order, Index pack, Scalar const** sample) {
  constexpr int kLanes = Lanes<Pack>::kCount;
  for (int lane = 0; lane < kLanes; ++lane) {
    Index const i = pack * kLanes + lane;
    sample[lane] = map.data + order[i < map.num_samples ? i : 0] * map.sample_stride;
  }
}

// Asks for what pack_positions will read: lines of 64 bytes, in the second-level cache.
template <class Pack, class Scalar>
HREL_HD void fetch_positions(MapView<Scalar> const& map, Index const* order, Index pack, Index first, Index positions) {
  constexpr Index kLine = 64 / sizeof(Scalar);
  if (!map.is_contiguous()) return;
  Scalar const* sample[Lanes<Pack>::kCount];
  samples_of_pack<Pack>(map, order, pack, sample);
  for (Scalar const* values : sample) {
    for (Index p = 0; p < positions; p += kLine) __builtin_prefetch(values + first + p, 0, 2);
  }
}

// out = positions first .. first + positions - 1 of the samples of one pack, times scale; with kCentred less the mean
// of the first four samples, which pack 0 finds for the others.
template <bool kCentred, class Pack, class Scalar>
HREL_HD void pack_positions(MapView<Scalar> const& map, Index const* order, Index pack, Index first, Index positions,
                            typename Lanes<Pack>::Scalar scale, typename Lanes<Pack>::Scalar* __restrict centre,
                            Pack* __restrict out) {
  using Value = typename Lanes<Pack>::Scalar;
  constexpr int kLanes = Lanes<Pack>::kCount;
  Scalar const* sample[kLanes];
  samples_of_pack<Pack>(map, order, pack, sample);
  auto const pack_all = [&](auto const& take) __attribute__((always_inline)) {
    if (map.is_contiguous()) {
      for (Scalar const*& values : sample) values += first;
      return interleave<Pack>(sample, 1, static_cast<int>(positions), take);
    }
    for (Index p = 0; p < positions; ++p) {
      Index const place = map.offset(first + p);
      Pack values;
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane) values[lane] = static_cast<Value>(sample[lane][place]);
      take(p, values);
    }
  };
  if constexpr (!kCentred) {
    pack_all([&](Index p, Pack values) __attribute__((always_inline)) { out[p] = values * scale; });
  } else if (pack > 0) {
    pack_all([&](Index p, Pack values) __attribute__((always_inline)) { out[p] = values * scale - centre[p]; });
  } else {
    static_assert(kLanes >= 4);
    pack_all([&](Index p, Pack values) __attribute__((always_inline)) {
      values *= scale;
      centre[p] = ((values[0] + values[1]) + (values[2] + values[3])) * Value(0.25);
      out[p] = values - centre[p];
    });
  }
}

// kBlockRows rows and kPacks packs of columns: sums += Term of row and column over the packed positions. The sum of a
// block begins at 0: one long float32 sum would lose digits. Not inlined: among more code, the compiler would not keep
// all sums in registers; static, as nothing of one level may be linked into another.
template <class Term, int kPacks, class Pack>
static __attribute__((noinline)) void add_terms(typename Lanes<Pack>::Scalar const* rows, Pack const* columns,
                                                Index positions, Pack* sums, Index packs) {
  using Value = typename Lanes<Pack>::Scalar;
  constexpr int kLanes = Lanes<Pack>::kCount;
  Pack sum[kBlockRows][kPacks] = {};
  for (Index p = 0; p < positions; ++p) {
    Pack column[kPacks];
#pragma GCC unroll 3
    for (int c = 0; c < kPacks; ++c) column[c] = columns[c * kBlockPositions + p];
#pragma GCC unroll 8
    for (int r = 0; r < kBlockRows; ++r) {
      Value const row = rows[(r / kLanes * kBlockPositions + p) * kLanes + r % kLanes];
#pragma GCC unroll 3
      for (int c = 0; c < kPacks; ++c) Term::add(row, column[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 3
    for (int c = 0; c < kPacks; ++c) sums[r * packs + c] += sum[r][c];
  }
}

template <class Pack>
HREL_HD void clear_squares(MapScratch<Pack> const& s) {
  for (Index q = 0; q < s.num_squares(); ++q) s.squares[q] = WidePack<Pack>{};
}

// Rows i .. i + kBlockRows - 1 of s.squares += Term over the positions of a panel, [packs, kBlockPositions], in the
// lower triangle.
template <class Term, class Pack>
HREL_HD void add_rows(WidePack<Pack> const* panel, Index i, Index positions, MapScratch<Pack> const& s) {
  constexpr int kLanes = Lanes<WidePack<Pack>>::kCount;
  using Value = typename Lanes<Pack>::Scalar;
  Value const* const rows = reinterpret_cast<Value const*>(panel + i / kLanes * kBlockPositions) + i % kLanes;
  Index const past_diagonal = (i + kBlockRows + kLanes - 1) / kLanes;
  WidePack<Pack>* const sums = s.squares + i * s.packs;
  Index c = 0;
  for (; c + kBlockPacks <= past_diagonal; c += kBlockPacks) {
    add_terms<Term, kBlockPacks>(rows, panel + c * kBlockPositions, positions, sums + c, s.packs);
  }
  if (c + 2 == past_diagonal) {
    add_terms<Term, 2>(rows, panel + c * kBlockPositions, positions, sums + c, s.packs);
  } else if (c + 1 == past_diagonal) {
    add_terms<Term, 1>(rows, panel + c * kBlockPositions, positions, sums + c, s.packs);
  }
}

// s.squares += Term over positions begin .. end - 1.
template <class Term, class Pack, class Scalar>
HREL_HD void add_positions(MapView<Scalar> const& map, Index const* order, Index begin, Index end,
                           typename Lanes<Pack>::Scalar scale, MapScratch<Pack> const& s) {
  using Wide = WidePack<Pack>;
  constexpr int kLanes = Lanes<Wide>::kCount;
  auto const positions_from = [&](Index first) {
    return end - first < kBlockPositions ? end - first : kBlockPositions;
  };
  Wide *panel = s.panels, *next_panel = panel + s.packs * kBlockPositions;
  for (Index pack = 0; pack < s.packs; ++pack) {
    pack_positions<Term::kCentred>(map, order, pack, begin, positions_from(begin), scale, s.centre,
                                   panel + pack * kBlockPositions);
  }
  for (Index first = begin; first < end; first += kBlockPositions) {
    Index const positions = positions_from(first), next = first + positions;
    for (Index i = 0; i < map.num_samples; i += kBlockRows) {
      // The next positions are fetched during these sums, of a few samples at a time: samples lie a power of two apart
      // in memory, and all of them at once would drive each other from the cache.
      Index const end_row = i + kBlockRows < map.num_samples ? i + kBlockRows : s.num_rows;
      Index const first_pack = i / kLanes, end_pack = next < end ? end_row / kLanes : first_pack;
      for (Index pack = first_pack; pack < end_pack; ++pack) {
        fetch_positions<Wide>(map, order, pack, next, positions_from(next));
      }
      add_rows<Term>(panel, i, positions, s);
      for (Index pack = first_pack; pack < end_pack; ++pack) {
        pack_positions<Term::kCentred>(map, order, pack, next, positions_from(next), scale, s.centre,
                                       next_panel + pack * kBlockPositions);
      }
    }
    Wide* const packed = next_panel;
    next_panel = panel;
    panel = packed;
  }
}

// Whether products know d2 well enough, by the sum |x_i|^2 + |x_j|^2 that their error goes with.
// For exp(-d2 / sigma^2), to 2^-20: near pairs far from the mean count most, e^t >= 1 + t + t^2 / 2.
template <class Variance>
struct KnownToKernel {
  Variance variance;  // sigma^2, one number or one a lane
  template <class Pack>
  HREL_HD auto operator()(Pack sum, Pack distance) const {
    Pack const t = distance * (1 / variance);
    return sum <= (1 + t * (1 + t * 0.5F)) * (2 * variance);
  }
};
// For the distance itself, to 2^-12 of it, and the less of the mean distance.
struct KnownToRoot {
  template <class Pack>
  HREL_HD auto operator()(Pack sum, Pack distance) const {
    return sum <= distance * 1024;
  }
};

// The rule for one filter, and for those of a group in their lanes.
template <class Pack>
struct KernelsKnown {
  Pack variance;
  HREL_HD auto in_lane(int lane) const { return KnownToKernel{static_cast<float>(variance[lane])}; }
  HREL_HD auto in_lanes() const { return KnownToKernel{repeat(variance)}; }
};
struct RootsKnown {
  HREL_HD KnownToRoot in_lane(int) const { return {}; }
  HREL_HD KnownToRoot in_lanes() const { return {}; }
};

// d2 from the products in s.squares; false where one of them is not known well enough. Equal samples have distance 0
// without error.
template <class Pack, class IsKnown>
HREL_HD bool distances_of_products(Index num_samples, IsKnown const& is_known, MapScratch<Pack> const& s) {
  using Wide = WidePack<Pack>;
  constexpr Index kLanes = Lanes<Wide>::kCount;
  auto* const norms = reinterpret_cast<typename Lanes<Pack>::Scalar*>(s.panels);  // which are done with
  // Past the last sample stands the first one, see samples_of_pack.
  for (Index i = 0; i < s.num_rows; ++i) norms[i] = i < num_samples ? s.row(i)[i] : norms[0];
  auto known = Wide{} <= Wide{};
  for (Index i = 0; i < num_samples; ++i) {
    Wide* const row = s.squares + i * s.packs;
    for (Index c = 0; c <= i / kLanes; ++c) {
      Wide const norm = load<Wide>(norms + c * kLanes), sum = norm + norms[i], distance = sum - 2 * row[c];
      row[c] = distance > 0 ? distance : Wide{};
      known &= ((distance == 0) & (norm == norms[i])) | is_known(sum, distance);
    }
  }
  bool all = true;
  for (Index lane = 0; lane < kLanes; ++lane) all = all && known[lane] != 0;
  return all;
}

// s.squares = d2 over positions begin .. end - 1; the diagonal is 0, or NaN where a value is NaN or infinite.
template <class Pack, class Scalar, class IsKnown>
HREL_HD void squared_distances_of_map(MapView<Scalar> const& map, Index const* order, Index begin, Index end,
                                      typename Lanes<Pack>::Scalar scale, IsKnown const& is_known,
                                      MapScratch<Pack> const& s) {
  if constexpr (std::is_same_v<typename Lanes<Pack>::Scalar, float>) {
    clear_squares(s);
    add_positions<Product>(map, order, begin, end, scale, s);
    if (distances_of_products(map.num_samples, is_known, s)) return;
  }
  clear_squares(s);
  add_positions<SquaredDifference>(map, order, begin, end, scale, s);
}

}  // namespace hrel::cpu::HREL_LEVEL
