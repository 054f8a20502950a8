// Alignment of Gaussian kernels with the label kernel L for many widths, from one pass over the distances:
//   2 log2(<K, L> / (|K| |L|)),  K_ij = exp(-d2_ij / sigma^2),  sigma = multiple * mean distance.
// The distances go into logarithmic bins once. With delta = d2 - x from the centre x of its bin, and s = 1 / sigma^2,
//   sum exp(-s d2) = sum_bins exp(-s x) sum (1 - s delta + (s delta)^2 / 2 - (s delta)^3 / 6 + ...),
// so that three moments of each bin serve every width. The rest is below (s x / 2^(kBits + 1))^4 / 24 of the summands.
// Source of the objective: HRel's width search, after Cristianini et al., On kernel-target alignment, 2001.
// SPDX-License-Identifier: MIT
#pragma once
#include <cmath>
#include <limits>

#include "cpu/gram.h"
#include "cpu/labels.h"
#include "cpu/lanes.h"
#include "cpu/scratch.h"
#include "numerics/problem.h"

namespace hrel::cpu::HREL_LEVEL {

// Bins by the leading bits of a number: 2^kBits for each power of two, and one around 0 up to 2^kNear. The rest of the
// series is then below 2e-7 of the summands in float32 and 1e-14 in float64. kKernels are evaluated at a time, which
// share the exponentials; in float64 their bins would not fit into the cache.
template <class Value>
struct Binning;
template <>
struct Binning<float> {
  using Bits = std::uint32_t;
  static constexpr int kBits = 4, kNear = -5;
  static constexpr int kKernels = Lanes<FloatPack>::kCount;
};
template <>
struct Binning<double> {
  using Bits = std::uint64_t;
  static constexpr int kBits = 10, kNear = -12;
  static constexpr int kKernels = 1;
};

// The weight of some pairs, and their sums of weight * delta, delta^2 / 2, delta^3 / 6.
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

// Of all pairs of samples, and of those with labels alike.
template <class Value>
struct Bin {
  typename Moments<Value>::Type all, labelled;
};

// Distances are measured so that the narrowest of the widths is 1. Beyond 2^kFar even the widest kernel is 0.
inline constexpr int kFar = 27;
inline constexpr double kWidestToNarrowest = 1024;  // exp(-2^27 / 1024^2) is 0

template <class Value>
inline constexpr Index kNumBins = 1 + (Index{kFar - Binning<Value>::kNear} << Binning<Value>::kBits);

template <class Value>
struct AlignmentScratch {
  explicit AlignmentScratch(Scratch& memory)
      : bins(memory.take<Bin<Value>>(kNumBins<Value> * Binning<Value>::kKernels)),
        centres(memory.take<Value>(kNumBins<Value>)) {}

  Bin<Value>* bins;  // [kNumBins, kKernels]
  Value* centres;    // of the bins that hold something, when they have been moved together
};

// The bin of x >= 0; -1 for one past all bins.
template <class Value>
HREL_HD Index bin_of(Value x) {
  using B = Binning<Value>;
  constexpr int kShift = std::numeric_limits<Value>::digits - 1 - B::kBits;
  constexpr Value kLowest = Value(1) / (1 << -B::kNear), kPast = Value(Index{1} << kFar);
  constexpr Index kFirst = static_cast<Index>(__builtin_bit_cast(typename B::Bits, kLowest) >> kShift);
  if (!(x >= kLowest)) return 0;
  if (!(x < kPast)) return -1;
  return 1 + static_cast<Index>(__builtin_bit_cast(typename B::Bits, x) >> kShift) - kFirst;
}

template <class Value>
HREL_HD Value centre_of(Index bin) {
  using B = Binning<Value>;
  constexpr int kShift = std::numeric_limits<Value>::digits - 1 - B::kBits;
  constexpr Value kLowest = Value(1) / (1 << -B::kNear);
  constexpr typename B::Bits kFirst = __builtin_bit_cast(typename B::Bits, kLowest) >> kShift;
  if (bin == 0) return 0;  // so that equal maps are exact, and equal alignments stay equal
  auto const leading = kFirst + static_cast<typename B::Bits>(bin - 1);
  return __builtin_bit_cast(Value, (leading << kShift) | (typename B::Bits{1} << (kShift - 1)));
}

// Their powers, without the factors of the series.
template <class Value>
HREL_HD void add_moments(typename Moments<Value>::Type& moments, Value weight, Value delta) {
  using Type = typename Moments<Value>::Type;
  // weight {1, delta, delta^2, delta^3} in multiply-adds: shuffles would cost more.
  moments += (delta * Type{0, 1, 1, 1} + Type{1, 0, 0, 0}) * weight *
             ((delta * Type{0, 0, 1, 1} + Type{1, 1, 0, 0}) * (delta * Type{0, 0, 0, 1} + Type{1, 1, 1, 0}));
}

// Sum of weight * exp(-s delta).
template <class Pack, class Type>
HREL_HD Pack series(Type const& moments, Pack s) {
  return moments[0] - s * (moments[1] - s * (moments[2] - s * moments[3]));
}

// The bins of kKernels kernels, from squared_distance(k, offset) of their triangles. The kernels take turns at every
// element, so that sums of one bin seldom wait for each other.
template <class Value, class Scalar, class SquaredDistance>
HREL_HD void fill_bins(LabelView<Scalar> const& labels, Index n, Value const (&inverse_width)[Binning<Value>::kKernels],
                       SquaredDistance const& squared_distance, Bin<Value>* bins) {
  constexpr int kKernels = Binning<Value>::kKernels;
  for (Index b = 0; b < kNumBins<Value> * kKernels; ++b) bins[b] = Bin<Value>{};
  // Calls add(bin, delta) for the element of every kernel.
  auto const place = [&](Index offset, auto const& add) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int k = 0; k < kKernels; ++k) {
      // Twice times 1/sigma: its square may not be a normal number.
      Value const x = static_cast<Value>(squared_distance(k, offset)) * inverse_width[k] * inverse_width[k];
      Index const bin = bin_of(x);
      if (bin >= 0) add(bins[bin * kKernels + k], x - centre_of<Value>(bin));
    }
  };
  for_each_element(n, [&](Index offset, Index row, Index column, int copies) __attribute__((always_inline)) {
    if (row >= n || column >= n) return;
    place(offset, [&](Bin<Value>& bin, Value delta)
                      __attribute__((always_inline)) { add_moments(bin.all, static_cast<Value>(copies), delta); });
  });
  for_each_labelled_element(labels, n, [&](Index offset, Scalar weight, int copies) __attribute__((always_inline)) {
    place(offset, [&](Bin<Value>& bin, Value delta) __attribute__((always_inline)) {
      add_moments(bin.labelled, static_cast<Value>(weight) * static_cast<Value>(copies), delta);
    });
  });
}

template <class Scalar>
HREL_HD double sum_of_squares(LabelView<Scalar> const& labels, Index n) {
  double sum = 0;
  for_each_labelled_element(labels, n, [&](Index, Scalar weight, int copies) __attribute__((always_inline)) {
    sum += static_cast<double>(weight) * static_cast<double>(weight) * copies;
  });
  return sum;
}

// alignment[k * num_widths + m] of `count` <= Binning::kKernels kernels for widths multiples[m] * mean_distance[k],
// from squared_distance(k, offset) of the triangles. NaN where the mean distance is not finite.
template <class Pack, class Scalar, class SquaredDistance>
HREL_HD void alignment_of_kernels(LabelView<Scalar> const& labels, Index n, Scalar const* multiples, Index num_widths,
                                  int count, double const* mean_distance, SquaredDistance const& squared_distance,
                                  AlignmentScratch<typename Lanes<Pack>::Scalar> const& s, Scalar* alignment) {
  using Value = typename Lanes<Pack>::Scalar;
  constexpr int kLanes = Lanes<Pack>::kCount, kKernels = Binning<Value>::kKernels;
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
    fill_bins(labels, n, inverse_width, squared_distance, s.bins);
    Index held = 0;
    for (Index b = 0; b < kNumBins<Value>; ++b) {
      bool empty = true;
      for (int k = 0; k < kKernels; ++k) empty = empty && s.bins[b * kKernels + k].all[0] == 0;
      if (empty) continue;
      typename Moments<Value>::Type const factors{1, 1, Value(0.5), Value(1.0 / 6)};
      for (int k = 0; k < kKernels; ++k) {
        s.bins[held * kKernels + k] = {s.bins[b * kKernels + k].all * factors,
                                       s.bins[b * kKernels + k].labelled * factors};
      }
      s.centres[held++] = centre_of<Value>(b);
    }
    for (Index m = first; m < end; m += kLanes) {
      Pack inverse_square{}, products[kKernels] = {}, squares[kKernels] = {};
      for (int lane = 0; lane < kLanes; ++lane) {
        double const ratio = narrowest / multiples[m + lane < end ? m + lane : m];
        inverse_square[lane] = static_cast<Value>(ratio * ratio);
      }
      for (Index b = 0; b < held; ++b) {
        Pack const kernel = 1 - one_minus_exp(inverse_square * s.centres[b]), twice = inverse_square + inverse_square;
        Bin<Value> const* const bins = s.bins + b * kKernels;
#pragma GCC unroll 8
        for (int k = 0; k < kKernels; ++k) {
          products[k] += kernel * series(bins[k].labelled, inverse_square);
          squares[k] += kernel * kernel * series(bins[k].all, twice);
        }
      }
      for (int k = 0; k < count; ++k) {
        for (int lane = 0; lane < kLanes && m + lane < end; ++lane) {
          double const product = products[k][lane], square = squares[k][lane];
          double const bits = 2 * std::log2(product / std::sqrt(square * label_squares));
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

// The widths of a group of filters.
template <class Pack, class Scalar>
HREL_HD void alignment_of_group(AlignmentProblem<Scalar> const& problem, Index first_filter, int num_filters,
                                Scratch memory) {
  Index const n = problem.acts.num_samples;
  Pack* const triangle = memory.take<Pack>(triangle_elements(n));
  DistanceScratch<Pack> const distances(memory, n);
  AlignmentScratch<typename Lanes<Pack>::Scalar> const scratch(memory);
  FilterSource<Scalar, Pack> const source{problem.acts, first_filter, num_filters, splat<Pack>(1)};
  squared_distances(source, problem.labels.order, distances, triangle);
  double mean[Lanes<Pack>::kCount];
  mean_distances(triangle, n, mean);
  for (int lane = 0; lane < num_filters; ++lane) {
    problem.mean_distance[first_filter + lane] = static_cast<Scalar>(mean[lane]);
  }
  constexpr int kKernels = Binning<typename Lanes<Pack>::Scalar>::kKernels;
  for (int lane = 0; lane < num_filters; lane += kKernels) {
    int const count = num_filters - lane < kKernels ? num_filters - lane : kKernels;
    alignment_of_kernels<Pack>(
        problem.labels, n, problem.multiples, problem.num_widths, count, mean + lane,
        [&](int k, Index offset) { return triangle[offset][lane + k]; }, scratch,
        problem.alignment + (first_filter + lane) * problem.num_widths);
  }
}

// Squared distances of the values begin .. end - 1 of every sample's output.
template <class Pack, class Scalar>
HREL_HD void distances_of_slice(ActivationView<Scalar> const& acts, Index const* order, Index begin, Index end,
                                Scalar* distances, Scratch memory) {
  MapScratch<Pack> const s(memory, acts.num_samples);
  squared_distances_of_map<Pack>(map_of_layer(acts), order, begin, end, 1, s);
  for_each_element(acts.num_samples, [&](Index offset, Index row, Index column, int)
                                         __attribute__((always_inline)) { distances[offset] = s.row(row)[column]; });
}

}  // namespace hrel::cpu::HREL_LEVEL
