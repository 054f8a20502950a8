// Alignment of Gaussian kernels with the label kernel L for many widths, from one pass over the distances:
//   2 log2(<K, L> / (|K| |L|)),  K_ij = exp(-d2_ij / sigma^2),  sigma = multiple * mean distance.
// The distances go into logarithmic bins once. With delta = d2 - x from the centre x of its bin, and s = 1 / sigma^2,
//   sum exp(-s d2) = sum_bins exp(-s x) sum (1 - s delta + (s delta)^2 / 2 - (s delta)^3 / 6 + ...),
// so that three moments of each bin serve every width. The rest is below (s x / 2^(kBits + 1))^4 / 24 of the summands.
// Source of the objective: HRel's width search, after Cristianini et al., On kernel-target alignment, 2001.
// SPDX-License-Identifier: MIT
#pragma once
#include <cmath>
#include <cstddef>
#include <limits>

#include "cpu/gram.h"
#include "cpu/labels.h"
#include "cpu/lanes.h"
#include "cpu/scratch.h"
#include "numerics/problem.h"

namespace hrel::cpu::HREL_LEVEL {

// Bins by the leading bits of a number: 2^kBits for each power of two, and one around 0 up to 2^kNear. The rest of the
// series is then below 2e-7 of the summands in float32 and 1e-14 in float64. Each of kCopies has bins of its own; in
// float64 more than one would not fit into the cache.
template <class Value>
struct Binning;
template <>
struct Binning<float> {
  using Bits = std::int32_t;
  static constexpr int kBits = 4, kNear = -5;
  static constexpr int kCopies = Lanes<FloatPack>::kCount;
};
template <>
struct Binning<double> {
  using Bits = std::int64_t;
  static constexpr int kBits = 10, kNear = -12;
  static constexpr int kCopies = 1;
};

// The weight of some pairs, and their sums of weight * delta, delta^2 / 2, delta^3 / 6; without the divisors while the
// bins are filled.
template <class Value>
struct Moments;
template <>
struct Moments<float> {
  typedef float Type __attribute__((vector_size(16)));
};
template <>
struct Moments<double> {
  typedef double Type __attribute__((vector_size(32)));
};

// Distances are measured so that the narrowest of the widths is 1. Beyond 2^kFar even the widest kernel is 0.
inline constexpr int kFar = 27;
inline constexpr double kWidestToNarrowest = 1024;  // exp(-2^27 / 1024^2) is 0

template <class Value>
inline constexpr Index kNumBins = 1 + (Index{kFar - Binning<Value>::kNear} << Binning<Value>::kBits);

template <class Value>
struct AlignmentScratch {
  explicit AlignmentScratch(Scratch& memory)
      : all(memory.take<typename Moments<Value>::Type>(kPlaces)),
        labelled(memory.take<typename Moments<Value>::Type>(kPlaces)),
        centres(memory.take<Value>(kNumBins<Value>)) {}

  // [kNumBins + 1, kCopies] the last bin for what lies past all bins, which is not read
  static constexpr Index kPlaces = (kNumBins<Value> + 1) * Binning<Value>::kCopies;
  typename Moments<Value>::Type* all;       // of all pairs of samples
  typename Moments<Value>::Type* labelled;  // of those with labels alike
  Value* centres;                           // of the bins that hold something, when they have been moved together
};

// A number's bits without those that its bin does not tell apart.
template <class Value>
inline constexpr int kBinShift = std::numeric_limits<Value>::digits - 1 - Binning<Value>::kBits;
template <class Value>
inline constexpr Value kLowest = Value(1) / (1 << -Binning<Value>::kNear);
template <class Value>
inline constexpr auto kFirstBits =
    __builtin_bit_cast(typename Binning<Value>::Bits, kLowest<Value>) >> kBinShift<Value>;

template <class Value>
HREL_HD Value centre_of(Index bin) {
  if (bin == 0) return 0;  // so that equal maps are exact, and equal alignments stay equal
  auto const leading = kFirstBits<Value> + static_cast<typename Binning<Value>::Bits>(bin - 1);
  return __builtin_bit_cast(Value,
                            leading << kBinShift<Value> | typename Binning<Value>::Bits{1} << (kBinShift<Value> - 1));
}

// Adds x[lane] >= 0 with its weight to its bin of copy `lane`. All but the sums is done for the whole pack at once.
template <class Pack>
HREL_HD void add_to_bins(Pack x, Pack weight, typename Moments<typename Lanes<Pack>::Scalar>::Type* bins) {
  using Value = typename Lanes<Pack>::Scalar;
  using Integers = typename Lanes<Pack>::Exponent;
  using Bits = typename Binning<Value>::Bits;
  using Type = typename Moments<Value>::Type;
  constexpr int kLanes = Lanes<Pack>::kCount, kCopies = Binning<Value>::kCopies, kMoments = 4;
  constexpr Value kPast = Value(Index{1} << kFar);
  Integers const leading = __builtin_bit_cast(Integers, x) >> kBinShift<Value>;
  Integers const inside = x >= kLowest<Value>;  // NaN, too, goes into the bin around 0
  Integers const centre = leading << kBinShift<Value> | Bits{1} << (kBinShift<Value> - 1);
  Integers bin = inside & (leading - (kFirstBits<Value> - 1)), copy;
  bin = x >= kPast ? Integers{} + static_cast<Bits>(kNumBins<Value>) : bin;
  for (int lane = 0; lane < kLanes; ++lane) copy[lane] = static_cast<Bits>(lane % kCopies);
  Integers places = (bin * Bits{kCopies} + copy) * static_cast<Bits>(sizeof(Type));  // in bytes
  keep_in_memory(places);
  Pack const delta = x - __builtin_bit_cast(Pack, inside & centre);
  Pack powers[kMoments] = {weight, weight * delta};
  powers[2] = powers[1] * delta;
  powers[3] = powers[2] * delta;
  if constexpr (kLanes >= kMoments) transpose(powers);
#pragma GCC unroll 8
  for (int lane = 0; lane < kLanes; ++lane) {
    Type moments;
    if constexpr (kLanes >= kMoments) {
      moments = reinterpret_cast<Type const*>(&powers[lane % kMoments])[lane / kMoments];
    } else {
      for (int k = 0; k < kMoments; ++k) moments[k] = powers[k][lane];
    }
    *reinterpret_cast<Type*>(reinterpret_cast<std::byte*>(bins) + places[lane]) += moments;
  }
}

// Sum of weight * exp(-s delta).
template <class Pack, class Type>
HREL_HD Pack series(Type const& moments, Pack s) {
  return moments[0] - s * (moments[1] - s * (moments[2] - s * moments[3]));
}

// Where fill_bins takes its numbers from, d2 in units of the narrowest width: a triangle of kKernels kernels, one a
// lane.
template <class Pack>
struct KernelsInLanes {
  using Value = typename Lanes<Pack>::Scalar;
  static constexpr int kKernels = Lanes<Pack>::kCount;
  static_assert(Binning<Value>::kCopies % kKernels == 0);

  Pack const* triangle;
  Pack inverse_width;

  HREL_HD void add(Index offset, Value weight, typename Moments<Value>::Type* bins) {
    // Twice times 1/sigma: its square may not be a normal number.
    add_to_bins(triangle[offset] * inverse_width * inverse_width, splat<Pack>(weight), bins);
  }
  HREL_HD void finish(typename Moments<Value>::Type*) {}
};

// The same for one kernel, from squared_distance(offset): as many of its elements as there are lanes at a time.
template <class Pack, class SquaredDistance>
struct ElementsInLanes {
  using Value = typename Lanes<Pack>::Scalar;
  static constexpr int kKernels = 1, kLanes = Lanes<Pack>::kCount;

  SquaredDistance const& squared_distance;
  Value inverse_width;
  Pack x{}, weights{};
  int held = 0;

  HREL_HD void add(Index offset, Value weight, typename Moments<Value>::Type* bins) {
    reinterpret_cast<Value*>(&x)[held] = static_cast<Value>(squared_distance(offset)) * inverse_width * inverse_width;
    reinterpret_cast<Value*>(&weights)[held] = weight;
    if (++held == kLanes) finish(bins);
  }
  HREL_HD void finish(typename Moments<Value>::Type* bins) {
    add_to_bins(x, weights, bins);
    x = weights = Pack{};  // lanes that the last elements leave over weigh nothing
    held = 0;
  }
};

// What makes one of them from an inverse width.
template <class Pack, class SquaredDistance>
HREL_HD auto elements_in_lanes(SquaredDistance const& squared_distance) {
  return [&](typename Lanes<Pack>::Scalar const* inverse_width) __attribute__((always_inline)) {
    return ElementsInLanes<Pack, SquaredDistance>{squared_distance, *inverse_width};
  };
}

template <class Value, class Scalar, class Source>
HREL_HD void fill_bins(LabelView<Scalar> const& labels, Index n, Source source, AlignmentScratch<Value> const& s) {
  for (Index b = 0; b < s.kPlaces; ++b) s.all[b] = s.labelled[b] = typename Moments<Value>::Type{};
  for_each_element(n, [&](Index offset, Index row, Index column, int copies) __attribute__((always_inline)) {
    if (row < n && column < n) source.add(offset, static_cast<Value>(copies), s.all);
  });
  source.finish(s.all);
  for_each_labelled_element(labels, n, [&](Index offset, Scalar weight, int copies) __attribute__((always_inline)) {
    source.add(offset, static_cast<Value>(weight) * static_cast<Value>(copies), s.labelled);
  });
  source.finish(s.labelled);
}

// Moves the bins that hold something together, [held, kKernels], with the factors of the series; returns how many.
template <int kKernels, class Value>
HREL_HD Index gather_bins(AlignmentScratch<Value> const& s) {
  using Type = typename Moments<Value>::Type;
  constexpr int kCopies = Binning<Value>::kCopies;
  Type const factors{1, 1, Value(0.5), Value(1.0 / 6)};
  Index held = 0;
  for (Index b = 0; b < kNumBins<Value>; ++b) {
    bool empty = true;
    for (int copy = 0; copy < kCopies; ++copy) empty = empty && s.all[b * kCopies + copy][0] == 0;
    if (empty) continue;
    Type all[kKernels] = {}, labelled[kKernels] = {};
    for (int copy = 0; copy < kCopies; ++copy) {
      all[copy % kKernels] += s.all[b * kCopies + copy];
      labelled[copy % kKernels] += s.labelled[b * kCopies + copy];
    }
    for (int k = 0; k < kKernels; ++k) {
      s.all[held * kKernels + k] = all[k] * factors;
      s.labelled[held * kKernels + k] = labelled[k] * factors;
    }
    s.centres[held++] = centre_of<Value>(b);
  }
  return held;
}

template <class Scalar>
HREL_HD double sum_of_squares(LabelView<Scalar> const& labels, Index n) {
  double sum = 0;
  for_each_labelled_element(labels, n, [&](Index, Scalar weight, int copies) __attribute__((always_inline)) {
    sum += static_cast<double>(weight) * static_cast<double>(weight) * copies;
  });
  return sum;
}

// alignment[k * num_widths + m] of `count` <= kKernels kernels for widths multiples[m] * mean_distance[k]; they share
// the exponentials. source(inverse_width), of an array, makes what fill_bins reads. NaN where the mean distance is not
// finite.
template <class Pack, class Scalar, class MakeSource>
HREL_HD void alignment_of_kernels(LabelView<Scalar> const& labels, Index n, Scalar const* multiples, Index num_widths,
                                  int count, double const* mean_distance, MakeSource const& source,
                                  AlignmentScratch<typename Lanes<Pack>::Scalar> const& s, Scalar* alignment) {
  using Value = typename Lanes<Pack>::Scalar;
  using Wide = WidePack<Pack>;  // one width a lane
  constexpr int kLanes = Lanes<Wide>::kCount;
  constexpr int kKernels = decltype(source(static_cast<Value const*>(nullptr)))::kKernels;
  double const label_squares = sum_of_squares(labels, n);
  // A run of widths that are not too far apart to share the bins: all of them, but for unusual searches.
  for (Index first = 0, end = 0; first < num_widths; first = end) {
    double narrowest = multiples[first], widest = narrowest;
    for (end = first + 1; end < num_widths; ++end) {
      double const low = multiples[end] < narrowest ? multiples[end] : narrowest;
      double const high = multiples[end] > widest ? multiples[end] : widest;
      if (high > kWidestToNarrowest * low) break;
      narrowest = low;
      widest = high;
    }
    Value inverse_width[kKernels];
    for (int k = 0; k < kKernels; ++k) {  // those past the last one repeat the first
      double const mean = mean_distance[k < count ? k : 0];
      // Where all maps are equal every width gives the same kernel, and 0 gives it without dividing by 0.
      inverse_width[k] = static_cast<Value>(mean > 0 ? 1 / (narrowest * mean) : 0);
    }
    fill_bins<Value>(labels, n, source(inverse_width), s);
    Index const held = gather_bins<kKernels>(s);
    for (Index m = first; m < end; m += kLanes) {
      Wide inverse_square{}, products[kKernels] = {}, squares[kKernels] = {};
      for (int lane = 0; lane < kLanes; ++lane) {
        double const ratio = narrowest / multiples[m + lane < end ? m + lane : m];
        inverse_square[lane] = static_cast<Value>(ratio * ratio);
      }
      Wide const twice = inverse_square + inverse_square, rate = inverse_square * static_cast<Value>(-kLog2OfE);
      for (Index b = 0; b < held; ++b) {
        Wide const kernel = 1 - one_minus_exp2(rate * s.centres[b]);
#pragma GCC unroll 8
        for (int k = 0; k < kKernels; ++k) {
          products[k] += kernel * series(s.labelled[b * kKernels + k], inverse_square);
          squares[k] += kernel * kernel * series(s.all[b * kKernels + k], twice);
        }
      }
      for (int k = 0; k < count; ++k) {
        for (int lane = 0; lane < kLanes && m + lane < end; ++lane) {
          double const product = products[k][lane], square = squares[k][lane];
          double const bits = std::log2(product * product / (square * label_squares));
          alignment[k * num_widths + m + lane] =
              static_cast<Scalar>(std::isfinite(mean_distance[k]) ? bits : std::numeric_limits<double>::quiet_NaN());
        }
      }
    }
  }
}

// Mean of |x_i - x_j| over all N^2 pairs, of every lane; NaN where a diagonal element is.
template <class Pack>
HREL_HD void mean_distances(Pack const* triangle, Index n, double* mean) {
  constexpr int kLanes = Lanes<Pack>::kCount;
  for (int lane = 0; lane < kLanes; ++lane) mean[lane] = 0;
  Pack tile{};
  for_each_element(n, [&](Index offset, Index row, Index column, int copies) __attribute__((always_inline)) {
    if (row < n && column < n) {
      tile += square_root(triangle[offset]) * static_cast<typename Lanes<Pack>::Scalar>(copies);
    }
    if (offset % (kTile * kTile) == kTile * kTile - 1) {
      for (int lane = 0; lane < kLanes; ++lane) mean[lane] += static_cast<double>(tile[lane]);
      tile = Pack{};
    }
  });
  for (int lane = 0; lane < kLanes; ++lane) mean[lane] /= static_cast<double>(n) * static_cast<double>(n);
}

// The widths of a group of filters whose distances are in the triangle, which it uses up.
template <class Pack, class Scalar>
HREL_HD void alignment_of_group(AlignmentProblem<Scalar> const& problem, Index first_filter, int num_filters,
                                AlignmentScratch<typename Lanes<Pack>::Scalar> const& scratch, Pack* triangle) {
  using Value = typename Lanes<Pack>::Scalar;
  Index const n = problem.acts.num_samples;
  double mean[Lanes<Pack>::kCount];
  mean_distances(triangle, n, mean);
  for (int lane = 0; lane < num_filters; ++lane) {
    problem.mean_distance[first_filter + lane] = static_cast<Scalar>(mean[lane]);
  }
  auto const align = [&](int lane, int count, auto const& source) __attribute__((always_inline)) {
    alignment_of_kernels<Pack>(problem.labels, n, problem.multiples, problem.num_widths, count, mean + lane, source,
                               scratch, problem.alignment + (first_filter + lane) * problem.num_widths);
  };
  if constexpr (Binning<Value>::kCopies >= Lanes<Pack>::kCount) {
    align(0, num_filters, [&](Value const* inverse_width) {
      Pack inverse_widths;
      for (int lane = 0; lane < Lanes<Pack>::kCount; ++lane) inverse_widths[lane] = inverse_width[lane];
      return KernelsInLanes<Pack>{triangle, inverse_widths};
    });
  } else {
    for (int lane = 0; lane < num_filters; ++lane) {
      auto const squared_distance = [&](Index offset) __attribute__((always_inline)) { return triangle[offset][lane]; };
      align(lane, 1, elements_in_lanes<Pack>(squared_distance));
    }
  }
}

// Scratch of the groups in turns (cpu/gram.h).
template <class Pack>
struct FilterAlignmentScratch {
  template <class Scalar>
  FilterAlignmentScratch(Scratch& memory, ActivationView<Scalar> const& acts)
      : triangle(memory.take<Pack>(triangle_elements(acts.num_samples))), distances(memory, acts), alignment(memory) {}

  Pack* triangle;  // [N, N] of the first group
  DistanceScratch<Pack> distances;
  AlignmentScratch<typename Lanes<Pack>::Scalar> alignment;
};

// The widths of filters first_filter .. first_filter + num_filters - 1, at most one a lane of the groups in turns.
template <class Pack, class Scalar>
HREL_HD void alignment_of_groups(AlignmentProblem<Scalar> const& problem, Index first_filter, int num_filters,
                                 Scratch memory) {
  constexpr int kLanes = Lanes<Pack>::kCount;
  FilterAlignmentScratch<Pack> const s(memory, problem.acts);
  DistanceGroup<Scalar, Pack, RootsKnown> groups[kGroupsInTurns] = {};
  int const num_groups = (num_filters + kLanes - 1) / kLanes;
  for (int g = 0; g < num_groups; ++g) {
    int const rest = num_filters - g * kLanes;
    groups[g] = {{problem.acts, first_filter + g * kLanes, rest < kLanes ? rest : kLanes, splat<Pack>(1)},
                 {},
                 s.distances.triangle_of(g, s.triangle, problem.acts.num_samples)};
  }
  squared_distances(groups, num_groups, problem.labels.order, s.distances);
  for (int g = 0; g < num_groups; ++g) {
    alignment_of_group(problem, groups[g].source.first_filter, groups[g].source.num_filters, s.alignment,
                       groups[g].triangle);
  }
}

// Squared distances of the values begin .. end - 1 of every sample's output.
template <class Pack, class Scalar>
HREL_HD void distances_of_slice(ActivationView<Scalar> const& acts, Index const* order, Index begin, Index end,
                                Scalar* distances, Scratch memory) {
  MapScratch<Pack> const s(memory, acts.num_samples);
  squared_distances_of_map<Pack>(map_of_layer(acts), order, begin, end, 1, KnownToRoot{}, s);
  for_each_element(acts.num_samples, [&](Index offset, Index row, Index column, int)
                                         __attribute__((always_inline)) { distances[offset] = s.row(row)[column]; });
}

}  // namespace hrel::cpu::HREL_LEVEL
