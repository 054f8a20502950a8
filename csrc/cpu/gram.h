// Squared distances d2_ij = |x_i - x_j|^2 of the maps of a group of filters, for one filter a lane. Side by side the
// differences are squared as they are: products (cpu/map_distances.h) would need a second way for outliers and offsets.
// SPDX-License-Identifier: MIT
#pragma once
#include <type_traits>

#include "cpu/lanes.h"
#include "cpu/map_distances.h"
#include "cpu/scratch.h"
#include "cpu/triangle.h"
#include "numerics/views.h"

namespace hrel::cpu::HREL_LEVEL {

inline constexpr Index kStagedPositions = 32;
inline constexpr Index kBlockTiles = 2;  // two blocks of rows, 8 KB each at 32 positions, stay in the first-level cache

// From here on, one filter after the other (cpu/map_distances.h) is faster than eight filters side by side.
inline constexpr Index kLongMap = 80;

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
    interleave(rows, acts.feature_stride, positions, scale, out, step);
  }
};

// Interleaved copy of `positions` values of every sample: [tile of samples][position][sample in tile], lanes inside.
template <class Scalar, class Pack>
HREL_HD void stage(FilterSource<Scalar, Pack> const& source, Index const* order, Index first, Index positions,
                   Pack* staged) {
  Index const num_samples = source.acts.num_samples;
  for (Index row = 0; row < padded(num_samples); ++row) {
    Pack* const out = staged + row / kTile * kTile * positions + row % kTile;
    if (row >= num_samples) {
      for (Index p = 0; p < positions; ++p) out[p * kTile] = Pack{};
      continue;
    }
    source.copy(order[row], first, positions, out, kTile);
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

// One filter a lane throughout.
template <class Scalar, class Pack>
HREL_HD void squared_distances_side_by_side(FilterSource<Scalar, Pack> const& source, Index const* order, Pack* staged,
                                            Pack* triangle) {
  Index const n = source.acts.num_samples, num_positions = source.acts.num_features;
  Index const elements = triangle_elements(n), tiles = num_tiles(n);
  for (Index q = 0; q < elements; ++q) triangle[q] = Pack{};
  for (Index first = 0; first < num_positions; first += kStagedPositions) {
    Index const rest = num_positions - first;
    Index const positions = rest < kStagedPositions ? rest : kStagedPositions;
    stage(source, order, first, positions, staged);
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
        staged(memory.take<Pack>(padded(acts.num_samples) * kStagedPositions)),
        panels(memory.take<WidePack<Pack>>(reads_neighbours<Pack>(acts) ? kLanes * panel_size() : 0)),
        centre(memory.take<Pack>(reads_neighbours<Pack>(acts) ? kBlockPositions : 0)) {}

  template <class Scalar>
  HREL_HD static Index num_maps(ActivationView<Scalar> const& acts) {
    if (!has_long_maps(acts)) return 0;
    return reads_neighbours<Pack>(acts) ? kLanes : Index{kMapsAtOnce<Pack>};
  }
  HREL_HD Index panel_size() const { return maps.packs * kBlockPositions; }

  MapScratch<Pack> maps;
  Pack* staged;
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
                                     source.acts.num_features, source.scale[lane], is_known(lane), s.of_map(k));
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
    if (distances_of_products(is_known(lane), own)) continue;
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

// triangle = d2; the diagonal is 0, or NaN where a value is NaN or infinite. is_known(lane) says what is known well
// enough of long maps, see cpu/map_distances.h.
template <class Scalar, class Pack, class IsKnown>
HREL_HD void squared_distances(FilterSource<Scalar, Pack> const& source, Index const* order, IsKnown const& is_known,
                               DistanceScratch<Pack> const& s, Pack* triangle) {
  ActivationView<Scalar> const& acts = source.acts;
  if (!has_long_maps(acts)) {
    squared_distances_side_by_side(source, order, s.staged, triangle);
  } else if (acts.feature_stride == 1) {
    squared_distances_in_turn(source, order, is_known, s.maps, triangle);
  } else if constexpr (std::is_same_v<typename Lanes<Pack>::Scalar, float>) {
    squared_distances_of_neighbours(source, order, is_known, s, triangle);
  } else {
    squared_distances_side_by_side(source, order, s.staged, triangle);
  }
  // Lanes past the last filter repeat the first.
  for (Index q = 0; q < triangle_elements(acts.num_samples); ++q) {
    for (int lane = source.num_filters; lane < Lanes<Pack>::kCount; ++lane) triangle[q][lane] = triangle[q][0];
  }
}

}  // namespace hrel::cpu::HREL_LEVEL
