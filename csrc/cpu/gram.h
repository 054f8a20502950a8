// Squared distances d2_ij = |x_i - x_j|^2 of the maps of a group of filters, for one filter a lane: by products where
// cpu/map_distances.h finds them good enough, else by differences. SPDX-License-Identifier: MIT
#pragma once
#include <type_traits>

#include "cpu/lanes.h"
#include "cpu/map_distances.h"
#include "cpu/scratch.h"
#include "cpu/triangle.h"
#include "numerics/views.h"

namespace hrel::cpu::HREL_LEVEL {

inline constexpr Index kStagedPositions = 32;  // two tiles of rows, 4 KB each, stay in the first-level cache

// Below it, products save less than the pass takes that makes distances of them.
inline constexpr Index kShortMap = 24;

// From here on, one filter after the other (cpu/map_distances.h) is faster than eight filters side by side.
inline constexpr Index kLongMap = 256;

template <class Scalar>
HREL_HD bool has_long_maps(ActivationView<Scalar> const& acts) {
  return acts.num_features >= kLongMap && (acts.feature_stride == 1 || acts.filter_stride == 1);
}

// Whether long maps are read together with their neighbours in memory (channels_last): squared_distances_of_neighbours.
template <class Pack, class Scalar>
HREL_HD bool reads_neighbours(ActivationView<Scalar> const& acts) {
  return std::is_same_v<typename Lanes<Pack>::Scalar, float> && has_long_maps(acts) && acts.feature_stride != 1;
}

// One filter a lane, of filters first_filter .. first_filter + num_filters - 1; lanes past them repeat the first one.
template <class Scalar, class Pack>
struct FilterSource {
  ActivationView<Scalar> acts;
  Index first_filter;
  int num_filters;
  Pack scale;  // powers of two, so that scaling rounds nothing

  // The positions first .. first + positions - 1 of one sample, to out[p * step].
  HREL_HD void copy(Index sample, Index first, Index positions, Pack* out, Index step) const {
    constexpr int kLanes = Lanes<Pack>::kCount;
    Scalar const* const map = acts.map(sample, first_filter) + first * acts.feature_stride;
    if (acts.filter_stride == 1 && num_filters == kLanes) {  // channels_last: neighbours are neighbours
      for (Index p = 0; p < positions; ++p) out[p * step] = load<Pack>(map + p * acts.feature_stride) * scale;
      return;
    }
    Scalar const* rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) rows[lane] = map + (lane < num_filters ? lane : 0) * acts.filter_stride;
    interleave(rows, acts.feature_stride, static_cast<int>(positions), scale, out, step);
  }
};

// Scratch of one group whose filters are read side by side.
template <class Pack>
struct SideBySideScratch {
  SideBySideScratch(Scratch& memory, Index n)
      : staged(memory.take<Pack>(padded(n) * kStagedPositions)), centre(memory.take<Pack>(kStagedPositions)) {}

  Pack* staged;  // [padded(n), kStagedPositions], see stage
  Pack* centre;  // [kStagedPositions] that positions are relative to
};

// Interleaved copy of `positions` values of every sample: [tile of samples][position][sample in tile], lanes inside;
// with kCentred less the mean of the first four samples.
template <bool kCentred, class Scalar, class Pack>
HREL_HD void stage(FilterSource<Scalar, Pack> const& source, Index const* order, Index first, Index positions,
                   SideBySideScratch<Pack> const& s) {
  using Value = typename Lanes<Pack>::Scalar;
  Index const num_samples = source.acts.num_samples;
  auto const subtract_centre = [&](Pack* out) __attribute__((always_inline)) {
    for (Index p = 0; p < positions; ++p) out[p * kTile] -= s.centre[p];
  };
  for (Index row = 0; row < padded(num_samples); ++row) {
    Pack* const out = s.staged + row / kTile * kTile * positions + row % kTile;
    source.copy(order[row < num_samples ? row : 0], first, positions, out, kTile);
    if constexpr (kCentred) {
      if (row >= kTile) subtract_centre(out);
      if (row != kTile - 1) continue;
      for (Index p = 0; p < positions; ++p) {
        Pack const* const samples = s.staged + p * kTile;
        s.centre[p] = ((samples[0] + samples[1]) + (samples[2] + samples[3])) * Value(0.25);
      }
      for (Index i = 0; i < kTile; ++i) subtract_centre(s.staged + i);
    }
  }
}

// One tile of columns in kTileRows tiles of rows, one below the other: sums of Term over the staged positions. The sum
// begins at 0: one long float32 sum would lose digits.
template <class Term, int kTileRows, class Pack>
HREL_HD void add_terms_of_tiles(Pack const* rows, Pack const* columns, Index positions,
                                Pack* const (&tiles)[kTileRows]) {
  constexpr int kColumns = kTile / kNeighbours<Pack>, kRows = kTileRows * kTile;
  constexpr int kRowsAtOnce = kRegisters >= 32 ? kRows : 2;  // whose sums fit the registers
  for (int first = 0; first < kRows; first += kRowsAtOnce) {
    WidePack<Pack> sum[kRowsAtOnce][kColumns] = {};
    for (Index p = 0; p < positions; ++p) {
      WidePack<Pack> column[kColumns];
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) column[c] = load_neighbours(columns + p * kTile + c * kNeighbours<Pack>);
#pragma GCC unroll 8
      for (int i = 0; i < kRowsAtOnce; ++i) {
        Index const row = first + i;
        WidePack<Pack> const value = load_repeated(rows + row / kTile * kTile * positions + p * kTile + row % kTile);
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) Term::add(value, column[c], sum[i][c]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRowsAtOnce; ++i) {
      Pack* const out = tiles[(first + i) / kTile] + (first + i) % kTile * kTile;
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        Pack* const elements = out + c * kNeighbours<Pack>;
        store_neighbours(elements, load_neighbours(elements) + sum[i][c]);
      }
    }
  }
}

// triangle += Term over all positions.
template <class Term, class Scalar, class Pack>
HREL_HD void add_positions_side_by_side(FilterSource<Scalar, Pack> const& source, Index const* order,
                                        SideBySideScratch<Pack> const& s, Pack* triangle) {
  Index const num_positions = source.acts.num_features, tiles = num_tiles(source.acts.num_samples);
  for (Index first = 0; first < num_positions; first += kStagedPositions) {
    Index const rest = num_positions - first;
    Index const positions = rest < kStagedPositions ? rest : kStagedPositions, step = kTile * positions;
    stage<Term::kCentred>(source, order, first, positions, s);
    Index row = 0;
    for (; row + 1 < tiles; row += 2) {
      Pack const* const rows = s.staged + row * step;
      for (Index column = 0; column <= row; ++column) {
        Pack* const pair[] = {triangle + tile_offset(row, column), triangle + tile_offset(row + 1, column)};
        add_terms_of_tiles<Term, 2>(rows, s.staged + column * step, positions, pair);
      }
      Pack* const last[] = {triangle + tile_offset(row + 1, row + 1)};
      add_terms_of_tiles<Term, 1>(rows + step, rows + step, positions, last);
    }
    if (row == tiles) continue;
    for (Index column = 0; column <= row; ++column) {
      Pack* const single[] = {triangle + tile_offset(row, column)};
      add_terms_of_tiles<Term, 1>(s.staged + row * step, s.staged + column * step, positions, single);
    }
  }
}

// d2 from the products in the triangle. Returns 0 in the lanes where all of them are known well enough, else 1. Equal
// samples have distance 0 without error.
template <class Pack, class IsKnown>
HREL_HD Pack distances_of_products_side_by_side(Index num_samples, IsKnown const& is_known,
                                                SideBySideScratch<Pack> const& s, Pack* triangle) {
  using Wide = WidePack<Pack>;
  Index const tiles = num_tiles(num_samples);
  Pack* const norms = s.staged;  // whose values are done with
  for (Index i = 0; i < tiles * kTile; ++i) norms[i] = triangle[element_offset(i, i)];
  auto known = Wide{} <= Wide{};
  for (Index row = 0; row < tiles; ++row) {
    for (Index column = 0; column <= row; ++column) {
      Pack* const tile = triangle + tile_offset(row, column);
#pragma GCC unroll 4
      for (Index i = 0; i < kTile; ++i) {
        Wide const own = load_repeated(norms + row * kTile + i);
#pragma GCC unroll 4
        for (Index j = 0; j < kTile; j += kNeighbours<Pack>) {
          Wide const norm = load_neighbours(norms + column * kTile + j), sum = own + norm;
          Wide const distance = sum - 2 * load_neighbours(tile + i * kTile + j);
          known &= ((distance == 0) & (norm == own)) | is_known(sum, distance);
          store_neighbours(tile + i * kTile + j, distance > 0 ? distance : Wide{});
        }
      }
    }
  }
  Pack const unknown = sum_of_neighbours<Pack>(known ? Wide{} : splat<Wide>(1));
  return unknown > 0 ? splat<Pack>(1) : Pack{};
}

// One filter a lane throughout.
template <class Scalar, class Pack, class IsKnown>
HREL_HD void squared_distances_side_by_side(FilterSource<Scalar, Pack> source, Index const* order,
                                            IsKnown const& is_known, SideBySideScratch<Pack> const& s, Pack* triangle) {
  Index const n = source.acts.num_samples, elements = triangle_elements(n);
  for (Index q = 0; q < elements; ++q) triangle[q] = Pack{};
  if (std::is_same_v<typename Lanes<Pack>::Scalar, float> && source.acts.num_features >= kShortMap) {
    add_positions_side_by_side<Product>(source, order, s, triangle);
    Pack const unknown = distances_of_products_side_by_side(n, is_known, s, triangle);
    bool all = true;
    for (int lane = 0; lane < Lanes<Pack>::kCount; ++lane) all = all && unknown[lane] == 0;
    if (all) return;
    for (Index q = 0; q < elements; ++q) triangle[q] = unknown == 0 ? triangle[q] : Pack{};
    source.scale *= unknown;  // to the others nothing is added
  }
  add_positions_side_by_side<SquaredDifference>(source, order, s, triangle);
}

// Maps whose d2 go into their lanes together, in one pass over the triangle.
template <class Pack>
inline constexpr int kMapsAtOnce = Lanes<Pack>::kCount < kTile ? Lanes<Pack>::kCount : kTile;

// d2 of `count` maps of s, at most kMapsAtOnce, into the lanes from `lane` on.
template <class Pack>
HREL_HD void put_into_lanes(MapScratch<Pack> const& s, int lane, int count, Index num_samples, Pack* triangle) {
  using Value = typename Lanes<Pack>::Scalar;
  constexpr int kLanes = Lanes<Pack>::kCount, kMaps = kMapsAtOnce<Pack>;
  typedef Value Columns __attribute__((vector_size(kMaps * sizeof(Value))));
  Value const* map[kMaps];
  for (int k = 0; k < kMaps; ++k) map[k] = s.of_map(k < count ? k : 0).row(0);
  Index const tiles = num_tiles(num_samples);
  for (Index tile_row = 0; tile_row < tiles; ++tile_row) {
    for (Index tile_column = 0; tile_column <= tile_row; ++tile_column) {
      Value* const out = reinterpret_cast<Value*>(triangle + tile_offset(tile_row, tile_column)) + lane;
#pragma GCC unroll 8
      for (Index q = 0; q < kTile * kTile; q += kMaps) {
        Columns elements[kMaps];  // of one row: [map] then [column]
#pragma GCC unroll 4
        for (int k = 0; k < kMaps; ++k) {
          Index const offset = s.row(tile_row * kTile + q / kTile) - s.row(0) + tile_column * kTile + q % kTile;
          __builtin_memcpy(&elements[k], map[k] + offset, sizeof(Columns));
        }
        transpose(elements);
#pragma GCC unroll 4
        for (int j = 0; j < kMaps; ++j) __builtin_memcpy(out + (q + j) * kLanes, &elements[j], sizeof(Columns));
      }
    }
  }
}

// Scratch of one group, for maps of either length and in either layout.
template <class Pack>
struct DistanceScratch {
  using Value = typename Lanes<Pack>::Scalar;
  static constexpr Index kLanes = Lanes<Pack>::kCount;

  template <class Scalar>
  DistanceScratch(Scratch& memory, ActivationView<Scalar> const& acts)
      : maps(memory, acts.num_samples, num_maps(acts)),
        side_by_side(memory, acts.num_samples),
        panels(memory.take<WidePack<Pack>>(reads_neighbours<Pack>(acts) ? kLanes * panel_size() : 0)),
        centre(memory.take<Pack>(reads_neighbours<Pack>(acts) ? kBlockPositions : 0)) {}

  template <class Scalar>
  HREL_HD static Index num_maps(ActivationView<Scalar> const& acts) {
    if (!has_long_maps(acts)) return 0;
    return reads_neighbours<Pack>(acts) ? kLanes : Index{kMapsAtOnce<Pack>};
  }
  HREL_HD Index panel_size() const { return maps.packs * kBlockPositions; }

  MapScratch<Pack> maps;
  SideBySideScratch<Pack> side_by_side;
  WidePack<Pack>* panels;  // [lanes, packs, kBlockPositions] of neighbours, one sample a lane
  Pack* centre;            // [kBlockPositions] that positions of neighbours are relative to, one filter a lane
};

// One filter after the other.
template <class Scalar, class Pack, class IsKnown>
HREL_HD void squared_distances_in_turn(FilterSource<Scalar, Pack> const& source, Index const* order,
                                       IsKnown const& is_known, MapScratch<Pack> const& s, Pack* triangle) {
  constexpr int kMaps = kMapsAtOnce<Pack>;
  for (int first = 0; first < source.num_filters; first += kMaps) {
    int const count = source.num_filters - first < kMaps ? source.num_filters - first : kMaps;
    for (int k = 0; k < count; ++k) {
      int const lane = first + k;
      squared_distances_of_map<Pack>(map_of_filter(source.acts, source.first_filter + lane), order, 0,
                                     source.acts.num_features, source.scale[lane], is_known.in_lane(lane), s.of_map(k));
    }
    put_into_lanes(s, first, count, source.acts.num_samples, triangle);
  }
}

// s.panels = positions first .. first + positions - 1 of filters that lie side by side in memory (channels_last), as
// pack_positions packs those of one filter: a line of memory holds one position of all of them.
template <class Scalar, class Pack>
HREL_HD void pack_neighbours(FilterSource<Scalar, Pack> const& source, Index const* order, Index first, Index positions,
                             DistanceScratch<Pack> const& s) {
  using Value = typename Lanes<Pack>::Scalar;
  constexpr Index kLanes = Lanes<Pack>::kCount, kAhead = 8;  // positions, whose lines the processor does not foresee
  constexpr Index kParts = Lanes<WidePack<Pack>>::kCount / kLanes;
  ActivationView<Scalar> const& acts = source.acts;
  for (Index part = 0; part < s.maps.packs * kParts; ++part) {
    Index sample[kLanes];
    for (Index k = 0; k < kLanes; ++k) sample[k] = order[part * kLanes + k < acts.num_samples ? part * kLanes + k : 0];
    for (Index p = 0; p < positions; ++p) {
      Index const ahead = first + (p + kAhead < positions ? p + kAhead : p);
      Pack values[kLanes];  // [sample] one filter a lane, then [filter] one sample a lane
#pragma GCC unroll 16
      for (Index k = 0; k < kLanes; ++k) {
        __builtin_prefetch(acts.map(sample[k], source.first_filter) + ahead * acts.feature_stride, 0, 2);
        source.copy(sample[k], first + p, 1, values + k, 1);
      }
      if (part == 0) s.centre[p] = ((values[0] + values[1]) + (values[2] + values[3])) * Value(0.25);
#pragma GCC unroll 16
      for (Index k = 0; k < kLanes; ++k) values[k] -= s.centre[p];
      transpose(values);
      Index const place = part / kParts * kBlockPositions + p;
      for (int lane = 0; lane < source.num_filters; ++lane) {
        reinterpret_cast<Pack*>(s.panels + lane * s.panel_size() + place)[part % kParts] = values[lane];
      }
    }
  }
}

// One filter after the other, of filters that lie side by side in memory: some positions of all of them are read
// together.
template <class Scalar, class Pack, class IsKnown>
HREL_HD void squared_distances_of_neighbours(FilterSource<Scalar, Pack> const& source, Index const* order,
                                             IsKnown const& is_known, DistanceScratch<Pack> const& s, Pack* triangle) {
  ActivationView<Scalar> const& acts = source.acts;
  Index const num_positions = acts.num_features;
  for (int lane = 0; lane < source.num_filters; ++lane) clear_squares(s.maps.of_map(lane));
  for (Index first = 0; first < num_positions; first += kBlockPositions) {
    Index const rest = num_positions - first, positions = rest < kBlockPositions ? rest : kBlockPositions;
    pack_neighbours(source, order, first, positions, s);
    for (int lane = 0; lane < source.num_filters; ++lane) {
      for (Index i = 0; i < s.maps.num_rows; i += kBlockRows) {
        add_rows<Product>(s.panels + lane * s.panel_size(), i, positions, s.maps.of_map(lane));
      }
    }
  }
  for (int lane = 0; lane < source.num_filters; ++lane) {
    MapScratch<Pack> const own = s.maps.of_map(lane);
    if (distances_of_products(is_known.in_lane(lane), own)) continue;
    clear_squares(own);
    add_positions<SquaredDifference>(map_of_filter(acts, source.first_filter + lane), order, 0, num_positions,
                                     source.scale[lane], own);
  }
  for (int lane = 0; lane < source.num_filters; lane += kMapsAtOnce<Pack>) {
    int const rest = source.num_filters - lane;
    put_into_lanes(s.maps.of_map(lane), lane, rest < kMapsAtOnce<Pack> ? rest : kMapsAtOnce<Pack>, acts.num_samples,
                   triangle);
  }
}

// triangle = d2; the diagonal is 0, or NaN where a value is NaN or infinite. is_known says what products know well
// enough, see cpu/map_distances.h.
template <class Scalar, class Pack, class IsKnown>
HREL_HD void squared_distances(FilterSource<Scalar, Pack> const& source, Index const* order, IsKnown const& is_known,
                               DistanceScratch<Pack> const& s, Pack* triangle) {
  ActivationView<Scalar> const& acts = source.acts;
  if (!has_long_maps(acts)) {
    squared_distances_side_by_side(source, order, is_known.in_lanes(), s.side_by_side, triangle);
  } else if (acts.feature_stride == 1) {
    squared_distances_in_turn(source, order, is_known, s.maps, triangle);
  } else if constexpr (std::is_same_v<typename Lanes<Pack>::Scalar, float>) {
    squared_distances_of_neighbours(source, order, is_known, s, triangle);
  } else {
    squared_distances_side_by_side(source, order, is_known.in_lanes(), s.side_by_side, triangle);
  }
  // Lanes past the last filter repeat the first.
  for (Index q = 0; q < triangle_elements(acts.num_samples); ++q) {
    for (int lane = source.num_filters; lane < Lanes<Pack>::kCount; ++lane) triangle[q][lane] = triangle[q][0];
  }
}

}  // namespace hrel::cpu::HREL_LEVEL
