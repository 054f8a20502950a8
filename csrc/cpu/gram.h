// Squared distances d2_ij = |x_i - x_j|^2 of the maps of a group of filters, for one filter a lane: by products where
// cpu/map_distances.h finds them good enough, else by differences. SPDX-License-Identifier: MIT
#pragma once
#include <algorithm>
#include <type_traits>

#include "cpu/lanes.h"
#include "cpu/map_distances.h"
#include "cpu/scratch.h"
#include "cpu/triangle.h"
#include "numerics/views.h"

namespace hrel::cpu::HREL_LEVEL {

inline constexpr Index kStagedPositions = 32;  // 4 KB for a tile of samples

// Below it, products save less than the pass takes that makes distances of them.
inline constexpr Index kShortMap = 24;

// From here on, one filter after the other (cpu/map_distances.h) is faster than eight filters side by side, unless they
// lie so in memory (channels_last).
inline constexpr Index kLongMap = 256;

template <class Scalar>
HREL_HD bool has_long_maps(ActivationView<Scalar> const& acts) {
  return acts.num_features >= kLongMap && acts.feature_stride == 1;
}

// A line of memory holds one position of more filters than a group has where these lie side by side, and processors
// read lines in pairs. Of long maps several groups take turns then, some positions at a time: the others find in the
// cache what the first one reads, as long as their triangles do not drive each other from it.
inline constexpr int kGroupsInTurns = 4;
inline constexpr Index kBytesInTurns = Index{2} << 20;

template <class Scalar>
HREL_HD int groups_in_turns(ActivationView<Scalar> const& acts) {
  if (acts.filter_stride != 1 || acts.num_features < kLongMap) return 1;
  Index const groups = kBytesInTurns / (triangle_elements(acts.num_samples) * kPackBytes);
  return static_cast<int>(groups < 1 ? 1 : groups < kGroupsInTurns ? groups : kGroupsInTurns);
}

// One filter a lane, of filters first_filter .. first_filter + num_filters - 1; lanes past them hold any other.
template <class Scalar, class Pack>
struct FilterSource {
  ActivationView<Scalar> acts;
  Index first_filter;
  int num_filters;
  Pack scale;  // powers of two, so that scaling rounds nothing

  // Calls take(p, values) for the positions first .. first + positions - 1 of one sample, counted from 0.
  template <class Take>
  HREL_HD void for_each_position(Index sample, Index first, Index positions, Take const& take) const {
    constexpr int kLanes = Lanes<Pack>::kCount;
    Scalar const* const map = acts.map(sample, first_filter) + first * acts.feature_stride;
    auto const take_scaled = [&](Index p, Pack values) __attribute__((always_inline)) { take(p, values * scale); };
    // channels_last: neighbours are neighbours, those of the next group too.
    if (acts.filter_stride == 1 && first_filter + kLanes <= acts.num_filters) {
      for (Index p = 0; p < positions; ++p) take_scaled(p, load<Pack>(map + p * acts.feature_stride));
      return;
    }
    Scalar const* rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) rows[lane] = map + (lane < num_filters ? lane : 0) * acts.filter_stride;
    interleave<Pack>(rows, acts.feature_stride, static_cast<int>(positions), take_scaled);
  }

  // Asks for what for_each_position will read, in the second-level cache.
  HREL_HD void fetch(Index sample, Index first, Index positions) const {
    constexpr Index kLine = 64 / sizeof(Scalar);
    if (acts.filter_stride == 1) {
      for (Index p = 0; p < positions; ++p) fetch_position(sample, first + p);
    } else if (acts.feature_stride == 1) {
      Scalar const* const map = acts.map(sample, first_filter) + first;
      for (int lane = 0; lane < num_filters; ++lane) {
        for (Index p = 0; p < positions; p += kLine) __builtin_prefetch(map + lane * acts.filter_stride + p, 0, 2);
      }
    }
  }
  // The same for one position, where filters are neighbours.
  HREL_HD void fetch_position(Index sample, Index position) const {
    __builtin_prefetch(acts.map(sample, first_filter) + position * acts.feature_stride, 0, 2);
  }
};

// A group of filters whose distances are wanted, and what products must know of them (cpu/map_distances.h).
template <class Scalar, class Pack, class IsKnown>
struct DistanceGroup {
  FilterSource<Scalar, Pack> source;
  IsKnown is_known;
  Pack* triangle;
};

// Scratch of the groups in turns whose filters are read side by side.
template <class Pack>
struct SideBySideScratch {
  SideBySideScratch(Scratch& memory, Index n, int num_groups)
      : num_staged(padded(n) * kStagedPositions),
        staged(memory.take<Pack>((num_groups > 1 ? 2 : 1) * num_groups * num_staged)),
        centre(memory.take<Pack>(num_groups * kStagedPositions)) {}

  Index num_staged;
  Pack* staged;  // [num_groups, padded(n), kStagedPositions], see stage; those of groups in turns twice
  Pack* centre;  // [num_groups, kStagedPositions] that positions are relative to
};

// Interleaved copy of `positions` values of the samples begin .. end - 1, which follow those staged before: [tile of
// samples][position][sample in tile], lanes inside; with kCentred less the mean of the first four samples. Not
// inlined, as add_terms.
template <bool kCentred, class Scalar, class Pack>
static __attribute__((noinline)) void stage(FilterSource<Scalar, Pack> const& source, Index const* order, Index begin,
                                            Index end, Index first, Index positions, Pack* __restrict centre,
                                            Pack* __restrict staged) {
  using Value = typename Lanes<Pack>::Scalar;
  Index const num_samples = source.acts.num_samples;
  for (Index row = begin; row < end; ++row) {
    Pack* const out = staged + row / kTile * kTile * positions + row % kTile;
    source.for_each_position(order[row < num_samples ? row : 0], first, positions,
                             [&](Index p, Pack values) __attribute__((always_inline)) {
                               bool const has_centre = kCentred && row >= kTile;
                               out[p * kTile] = has_centre ? values - centre[p] : values;
                             });
    if (!kCentred || row != kTile - 1) continue;
    for (Index p = 0; p < positions; ++p) {
      Pack* const samples = staged + p * kTile;
      centre[p] = ((samples[0] + samples[1]) + (samples[2] + samples[3])) * Value(0.25);
      for (Index i = 0; i < kTile; ++i) samples[i] -= centre[p];
    }
  }
}

// What the triangle holds before the terms are added to it.
enum class Before { kNothing, kSums };

// Tiles of columns whose sums, of one tile of rows, fit the registers beside what they are made of.
template <class Pack>
inline constexpr int kTilesAtOnce = std::clamp<int>((kRegisters - 8) / (kTile * kTile / kNeighbours<Pack>), 1, 3);

// kTiles tiles side by side, of one tile of rows: sums of Term over the staged positions. The sum begins at 0: one long
// float32 sum would lose digits.
template <class Term, int kTiles, class Pack>
HREL_HD void add_terms_of_tiles(Pack const* rows, Pack const* columns, Index positions, Before before, Pack* tiles) {
  constexpr int kColumns = kTile / kNeighbours<Pack>;  // of a tile, in registers
  constexpr int kRowsAtOnce = kTiles * kColumns * kTile < kRegisters ? kTile : 2;
  for (int first = 0; first < kTile; first += kRowsAtOnce) {
    WidePack<Pack> sum[kRowsAtOnce][kTiles * kColumns] = {};
#pragma GCC unroll 2
    for (Index p = 0; p < positions; ++p) {
      WidePack<Pack> column[kTiles * kColumns];
#pragma GCC unroll 12
      for (int c = 0; c < kTiles * kColumns; ++c) {
        column[c] =
            load_neighbours(columns + (c / kColumns * positions + p) * kTile + c % kColumns * kNeighbours<Pack>);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kRowsAtOnce; ++i) {
        WidePack<Pack> const value = load_repeated(rows + p * kTile + first + i);
#pragma GCC unroll 12
        for (int c = 0; c < kTiles * kColumns; ++c) Term::add(value, column[c], sum[i][c]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRowsAtOnce; ++i) {
#pragma GCC unroll 12
      for (int c = 0; c < kTiles * kColumns; ++c) {
        Pack* const elements = tiles + (c / kColumns * kTile + first + i) * kTile + c % kColumns * kNeighbours<Pack>;
        if (before == Before::kSums) sum[i][c] += load_neighbours(elements);
        store_neighbours(elements, sum[i][c]);
      }
    }
  }
}

// How often add_staged_positions calls meanwhile.
template <class Pack>
HREL_HD Index num_steps(Index tiles) {
  Index steps = 0;
  for (Index column = 0; column < tiles; column += kTilesAtOnce<Pack>) steps += tiles - column;
  return steps;
}

// Asks for kTilesAtOnce tiles side by side, in the second-level cache. A processor that reads the triangle in such
// pieces does not see where the next one lies.
template <class Pack>
HREL_HD void fetch_tiles(Pack const* tiles) {
  for (Index q = 0; q < kTilesAtOnce<Pack> * kTile * kTile; q += 64 / sizeof(Pack)) __builtin_prefetch(tiles + q, 1, 2);
}

// triangle += Term over the staged positions, of a few columns of tiles at a time, which stay in the first-level cache.
// Calls meanwhile(row, column) before each row of these.
template <class Term, class Pack, class Meanwhile>
HREL_HD void add_staged_positions(Pack const* staged, Index tiles, Index positions, Before before,
                                  Meanwhile const& meanwhile, Pack* triangle) {
  constexpr int kTiles = kTilesAtOnce<Pack>;
  Index const step = kTile * positions;
  for (Index column = 0; column < tiles; column += kTiles) {
    Pack const* const columns = staged + column * step;
    for (Index row = column; row < tiles; ++row) {
      meanwhile(row, column);
      Pack const* const rows = staged + row * step;
      Pack* const out = triangle + tile_offset(row, column);
      if (row - column + 1 >= kTiles) {
        add_terms_of_tiles<Term, kTiles>(rows, columns, positions, before, out);
      } else if (row == column) {
        add_terms_of_tiles<Term, 1>(rows, columns, positions, before, out);
      } else {
        add_terms_of_tiles<Term, 2>(rows, columns, positions, before, out);
      }
    }
  }
}

// The triangle of every group += Term over all positions.
template <class Term, class Scalar, class Pack, class IsKnown>
HREL_HD void add_positions_side_by_side(DistanceGroup<Scalar, Pack, IsKnown> const* groups, int num_groups,
                                        Index const* order, Before before, SideBySideScratch<Pack> const& s) {
  constexpr int kGroupsOfLine = 64 / (sizeof(Scalar) * Lanes<Pack>::kCount);
  ActivationView<Scalar> const& acts = groups[0].source.acts;
  Index const rows = padded(acts.num_samples), tiles = num_tiles(acts.num_samples);
  auto const positions_from = [&](Index first) __attribute__((always_inline)) {
    Index const rest = acts.num_features - first;
    return rest < kStagedPositions ? rest : kStagedPositions;
  };
  // Of groups in turns the next positions are staged during the sums, of one tile of samples at a time: samples lie a
  // power of two apart in memory, and all of them at once would drive each other from the cache.
  bool const stages_ahead = num_groups > 1;
  Pack *staged = s.staged, *next_staged = staged + (stages_ahead ? num_groups * s.num_staged : 0);
  auto const stage_groups = [&](Index begin, Index end, Index first, Pack* out) __attribute__((always_inline)) {
    for (int g = 0; g < num_groups; ++g) {
      stage<Term::kCentred>(groups[g].source, order, begin, end, first, positions_from(first),
                            s.centre + g * kStagedPositions, out + g * s.num_staged);
    }
  };
  stage_groups(0, rows, 0, staged);
  for (Index first = 0; first < acts.num_features; first += kStagedPositions) {
    Index const positions = positions_from(first), next = first + positions;
    // What is read next is fetched in pieces, spread evenly over the sums: one position of a sample, or all of them.
    Index const num_next = positions_from(next), pieces = stages_ahead ? num_next : 1;
    Index const steps = num_groups * num_steps<Pack>(tiles);
    Index due = 0, fetched = 0;  // pieces, times the number of steps
    Index sample = 0, piece = 0, end_staged = 0;
    auto const fetch_next = [&] __attribute__((always_inline)) {
      if (next >= acts.num_features) return;
      for (due += rows * pieces; fetched < due; fetched += steps) {
        for (int g = 0; sample < acts.num_samples && g < num_groups; g += kGroupsOfLine) {
          if (stages_ahead) {
            groups[g].source.fetch_position(order[sample], next + piece);
          } else {
            groups[g].source.fetch(order[sample], next, num_next);
          }
        }
        if (++piece < pieces) continue;
        piece = 0;
        if (++sample % kTile == 0 && stages_ahead) {  // the tile before the one that is on its way
          stage_groups(end_staged, sample - kTile, next, next_staged);
          end_staged = sample - kTile;
        }
      }
    };
    for (int g = 0; g < num_groups; ++g) {
      Pack* const triangle = groups[g].triangle;
      auto const meanwhile = [&](Index row, Index column) __attribute__((always_inline)) {
        if (stages_ahead && row + 2 < tiles) fetch_tiles(triangle + tile_offset(row + 2, column));
        fetch_next();
      };
      add_staged_positions<Term>(staged + g * s.num_staged, tiles, positions, before, meanwhile, triangle);
    }
    before = Before::kSums;
    if (next < acts.num_features) stage_groups(end_staged, rows, next, next_staged);
    Pack* const used = staged;
    staged = next_staged;
    next_staged = used;
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
HREL_HD void squared_distances_side_by_side(DistanceGroup<Scalar, Pack, IsKnown> const* groups, int num_groups,
                                            Index const* order, SideBySideScratch<Pack> const& s) {
  ActivationView<Scalar> const& acts = groups[0].source.acts;
  Index const n = acts.num_samples, elements = triangle_elements(n);
  if (!std::is_same_v<typename Lanes<Pack>::Scalar, float> || acts.num_features < kShortMap) {
    return add_positions_side_by_side<SquaredDifference>(groups, num_groups, order, Before::kNothing, s);
  }
  add_positions_side_by_side<Product>(groups, num_groups, order, Before::kNothing, s);
  for (int g = 0; g < num_groups; ++g) {
    DistanceGroup<Scalar, Pack, IsKnown> group = groups[g];
    Pack const unknown = distances_of_products_side_by_side(n, group.is_known.in_lanes(), s, group.triangle);
    bool all = true;
    for (int lane = 0; lane < Lanes<Pack>::kCount; ++lane) all = all && unknown[lane] == 0;
    if (all) continue;
    for (Index q = 0; q < elements; ++q) group.triangle[q] = unknown == 0 ? group.triangle[q] : Pack{};
    group.source.scale *= unknown;  // to the others nothing is added
    add_positions_side_by_side<SquaredDifference>(&group, 1, order, Before::kSums, s);
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

// Scratch of the groups in turns, for maps of either length and in either layout.
template <class Pack>
struct DistanceScratch {
  template <class Scalar>
  DistanceScratch(Scratch& memory, ActivationView<Scalar> const& acts)
      : maps(memory, acts.num_samples, has_long_maps(acts) ? kMapsAtOnce<Pack> : 0),
        side_by_side(memory, acts.num_samples, groups_in_turns(acts)),
        others(memory.take<Pack>((groups_in_turns(acts) - 1) * triangle_elements(acts.num_samples))) {}

  MapScratch<Pack> maps;
  SideBySideScratch<Pack> side_by_side;
  Pack* others;  // [groups in turns - 1, N, N] for the triangles of all groups but the first

  HREL_HD Pack* triangle_of(int g, Pack* first, Index num_samples) const {
    return g == 0 ? first : others + (g - 1) * triangle_elements(num_samples);
  }
};

// One filter after the other.
template <class Scalar, class Pack, class IsKnown>
HREL_HD void squared_distances_in_turn(DistanceGroup<Scalar, Pack, IsKnown> const& group, Index const* order,
                                       MapScratch<Pack> const& s) {
  constexpr int kMaps = kMapsAtOnce<Pack>;
  FilterSource<Scalar, Pack> const& source = group.source;
  for (int first = 0; first < source.num_filters; first += kMaps) {
    int const count = source.num_filters - first < kMaps ? source.num_filters - first : kMaps;
    for (int k = 0; k < count; ++k) {
      int const lane = first + k;
      squared_distances_of_map<Pack>(map_of_filter(source.acts, source.first_filter + lane), order, 0,
                                     source.acts.num_features, source.scale[lane], group.is_known.in_lane(lane),
                                     s.of_map(k));
    }
    put_into_lanes(s, first, count, source.acts.num_samples, group.triangle);
  }
}

// The triangle of every group = d2, of one group or of several in turns; the diagonal is 0, or NaN where a value is NaN
// or infinite.
template <class Scalar, class Pack, class IsKnown>
HREL_HD void squared_distances(DistanceGroup<Scalar, Pack, IsKnown> const* groups, int num_groups, Index const* order,
                               DistanceScratch<Pack> const& s) {
  ActivationView<Scalar> const& acts = groups[0].source.acts;
  if (has_long_maps(acts)) {
    for (int g = 0; g < num_groups; ++g) squared_distances_in_turn(groups[g], order, s.maps);
  } else {
    squared_distances_side_by_side(groups, num_groups, order, s.side_by_side);
  }
  // Lanes past the last filter repeat the first.
  for (int g = 0; g < num_groups; ++g) {
    for (Index q = 0; q < triangle_elements(acts.num_samples); ++q) {
      Pack& element = groups[g].triangle[q];
      for (int lane = groups[g].source.num_filters; lane < Lanes<Pack>::kCount; ++lane) element[lane] = element[0];
    }
  }
}

}  // namespace hrel::cpu::HREL_LEVEL
