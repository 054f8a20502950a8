// S(A_f) and S(A_f, B) of a group of filters, one filter a lane, in the order of the paper:
//   distances -> A = exp(-d2 / sigma^2) / N -> joint entropy with the labels -> entropy of A,
// or the joint entropies with permuted labels in their place.
// SPDX-License-Identifier: MIT
#pragma once
#include <cmath>

#include "cpu/entropy.h"
#include "cpu/gram.h"
#include "cpu/labels.h"
#include "cpu/lanes.h"
#include "cpu/scratch.h"
#include "numerics/problem.h"

namespace hrel::cpu::HREL_LEVEL {

// Scratch of the groups in turns (cpu/gram.h).
template <class Pack>
struct RelevanceScratch : EntropyScratch<Pack> {
  template <class Scalar>
  RelevanceScratch(Scratch& memory, ActivationView<Scalar> const& acts)
      : EntropyScratch<Pack>(memory, acts.num_samples),
        block(memory.take<Pack>(triangle_elements(acts.num_samples))),
        distances(memory, acts) {}

  Pack* block;  // [N, N] of one class, or of A o B
  DistanceScratch<Pack> distances;

  // With the triangle of group g in turns.
  HREL_HD RelevanceScratch of_group(int g) const {
    RelevanceScratch own = *this;
    own.triangle = distances.triangle_of(g, this->triangle, this->bands.size);
    return own;
  }
};

// triangle = A - 11'/N = -(1 - 2^(rate d2)) / N, padding 0. Returns 0, or NaN for a lane with a value not finite.
template <class Pack>
HREL_HD Pack centred_gaussian(Pack* triangle, Index n, Pack rate) {
  using Scalar = typename Lanes<Pack>::Scalar;
  Pack not_finite{};
  for (Index i = 0; i < n; ++i) not_finite += triangle[element_offset(i, i)];
  Scalar const scale = Scalar(-1) / static_cast<Scalar>(n);
  WidePack<Pack> const rates = repeat(rate);
  for (Index q = 0; q < triangle_elements(n); q += kNeighbours<Pack>) {
    store_neighbours(triangle + q, one_minus_exp2(load_neighbours(triangle + q) * rates) * scale);
  }
  for (Index i = 0; i < n; ++i) triangle[element_offset(i, i)] = Pack{};
  clear_padding(triangle, n);
  return not_finite;
}

// A group of filters whose relevance is wanted.
template <class Scalar, class Pack>
struct RelevanceGroup {
  DistanceGroup<Scalar, Pack, KernelsKnown<Pack>> distances;
  Pack rate;  // -log2(e) / sigma^2, of the maps as they are scaled
};

template <class Scalar, class Pack>
HREL_HD RelevanceGroup<Scalar, Pack> relevance_group(ActivationView<Scalar> const& acts, Scalar const* sigma,
                                                     Index first_filter, int num_filters, Pack* triangle) {
  using Value = typename Lanes<Pack>::Scalar;
  Pack scale, variance, rate;
  for (int lane = 0; lane < Lanes<Pack>::kCount; ++lane) {
    double const width = sigma[first_filter + (lane < num_filters ? lane : 0)];
    // width * power lies in [1, 2), or for the least numbers near it, so that no square leaves the range of numbers
    // that matter.
    double const power = power_of_two_scale<Pack>(width), square = width * power * (width * power);
    scale[lane] = static_cast<Value>(power);
    variance[lane] = static_cast<Value>(square);
    rate[lane] = static_cast<Value>(-kLog2OfE / square);
  }
  return {{{acts, first_filter, num_filters, scale}, {variance}, triangle}, rate};
}

// Calls visit(first, count, scratch, not_finite, place) for every group of the filters first_filter .. first_filter +
// num_filters - 1, with A - 11'/N of its filters in the triangle of its scratch, not_finite as of centred_gaussian, and
// place where its first filter stands among all of them.
template <class Pack, class Scalar, class Visit>
HREL_HD void for_each_group(ActivationView<Scalar> const& acts, Index const* order, Scalar const* sigma,
                            Index first_filter, int num_filters, RelevanceScratch<Pack> const& s, Visit const& visit) {
  constexpr int kLanes = Lanes<Pack>::kCount;
  DistanceGroup<Scalar, Pack, KernelsKnown<Pack>> groups[kGroupsInTurns] = {};
  Pack rate[kGroupsInTurns];
  int const num_groups = (num_filters + kLanes - 1) / kLanes;
  auto const size = [&](int g) { return num_filters - g * kLanes < kLanes ? num_filters - g * kLanes : kLanes; };
  for (int g = 0; g < num_groups; ++g) {
    auto const group = relevance_group(acts, sigma, first_filter + g * kLanes, size(g), s.of_group(g).triangle);
    groups[g] = group.distances;
    rate[g] = group.rate;
  }
  squared_distances(groups, num_groups, order, s.distances);
  for (int g = 0; g < num_groups; ++g) {
    RelevanceScratch<Pack> const own = s.of_group(g);
    Pack const not_finite = centred_gaussian(own.triangle, acts.num_samples, rate[g]);
    visit(first_filter + g * kLanes, size(g), own, not_finite, g * kLanes);
  }
}

// tr (A o B)^2 from the centred triangle.
template <class Scalar, class Pack, class Samples>
HREL_HD Pack sum_of_joint_squares(Pack const* triangle, Index n, LabelView<Scalar> const& labels,
                                  Samples const& samples) {
  using Value = typename Lanes<Pack>::Scalar;
  Value const shift = Value(1) / static_cast<Value>(n);
  Pack sums[kTile * kTile] = {};  // one long float32 sum would lose digits
  for_each_labelled_element(
      labels, n,
      [&](Index offset, Scalar weight, int copies) __attribute__((always_inline)) {
        Pack const element = (triangle[offset] + shift) * static_cast<Value>(weight);
        sums[offset % (kTile * kTile)] += element * element * static_cast<Value>(copies);
      },
      samples);
  Pack total{};
  for (Pack const& sum : sums) total += sum;
  return total;
}

// Bands of A o B, B the label kernel of classes: one block a class, end to end, uncoupled. At position k among the
// classes stands samples[k].
template <class Scalar, class Pack, class Samples = SortedSamples>
HREL_HD void reduce_class_blocks(LabelView<Scalar> const& labels, RelevanceScratch<Pack> const& s,
                                 Samples const& samples = {}) {
  using Value = typename Lanes<Pack>::Scalar;
  Index const n = s.bands.size;
  Bands<Pack>::uncouple(s.bands);
  for (Index c = 0; labels.class_offsets[c] < n; ++c) {
    Index const first = labels.class_offsets[c], size = labels.class_offsets[c + 1] - first;
    for_each_element(size, [&](Index offset, Index row, Index column, int) __attribute__((always_inline)) {
      s.block[offset] = row < size && column < size
                            ? s.triangle[symmetric_offset(samples[first + row], samples[first + column])]
                            : Pack{};
    });
    // The block is A_c - 11'/N, and 11'/N = (n_c / N) 11'/n_c.
    Bands<Pack>::reduce(s.block, Bands<Pack>::rows(s.bands, first, size),
                        splat<Pack>(static_cast<Value>(size) / static_cast<Value>(n)), s.reduction);
  }
}

// Bands of A o B for any label kernel B. Of it, the mean of B times 11'/N is kept out: all of it where A =
// 11'/N.
template <class Scalar, class Pack>
HREL_HD void reduce_joint(LabelView<Scalar> const& labels, RelevanceScratch<Pack> const& s) {
  using Value = typename Lanes<Pack>::Scalar;
  Index const n = s.bands.size;
  double sum = 0;
  for (Index k = 0; k < n * n; ++k) sum += labels.gram[k];
  Value const mean = static_cast<Value>(sum / (static_cast<double>(n) * static_cast<double>(n)));
  Value const inverse_n = Value(1) / static_cast<Value>(n);
  for_each_element(n, [&](Index offset, Index row, Index column, int) __attribute__((always_inline)) {
    if (row >= n || column >= n) {
      s.block[offset] = Pack{};
    } else {
      Value const weight = static_cast<Value>(labels.gram[row * n + column]);
      s.block[offset] = s.triangle[offset] * weight + (weight - mean) * inverse_n;
    }
  });
  Bands<Pack>::reduce(s.block, s.bands, splat<Pack>(mean), s.reduction);
}

// S(A_f, B) in bits of the lanes of s.triangle, which it keeps, for the samples at the positions of the classes.
template <class Scalar, class Pack, class Samples>
HREL_HD void joint_entropies(EntropyOrder const& order, LabelView<Scalar> const& labels, Samples const& samples,
                             RelevanceScratch<Pack> const& s, int lanes, double* bits, bool* doubtful) {
  if (order.spectrum == Spectrum::kSquare) {
    Pack const sum = sum_of_joint_squares(s.triangle, s.bands.size, labels, samples);
    for (int lane = 0; lane < lanes; ++lane) bits[lane] = -std::log2(static_cast<double>(sum[lane]));
    return;
  }
  if (labels.gram == nullptr) {
    reduce_class_blocks(labels, s, samples);
  } else {
    reduce_joint(labels, s);
  }
  entropies_of_bands(order, s, lanes, bits, doubtful);
}

// Filters first_filter .. first_filter + num_filters - 1, at most one a lane of the groups in turns; true for those
// left to the eigenvalue route.
template <class Pack, class Scalar>
HREL_HD void relevance_of_groups(RelevanceProblem<Scalar> const& problem, Index first_filter, int num_filters,
                                 Scratch memory, bool* doubtful) {
  EntropyOrder const& order = problem.order;
  auto const visit = [&](Index first, int count, RelevanceScratch<Pack> const& s, Pack not_finite, int place)
                         __attribute__((always_inline)) {
                           double joint[Lanes<Pack>::kCount], own[Lanes<Pack>::kCount];
                           joint_entropies(order, problem.labels, SortedSamples{}, s, count, joint, doubtful + place);
                           entropies_of_triangle(order, s, splat<Pack>(1), count, own, doubtful + place);
                           for (int lane = 0; lane < count; ++lane) {
                             problem.entropy[first + lane] = static_cast<Scalar>(own[lane] + not_finite[lane]);
                             problem.joint_entropy[first + lane] = static_cast<Scalar>(joint[lane] + not_finite[lane]);
                           }
                         };
  for_each_group(problem.acts, problem.labels.order, problem.sigma, first_filter, num_filters,
                 RelevanceScratch<Pack>(memory, problem.acts), visit);
}

// The same filters for permuted labels: one Gram matrix each, of which every permutation takes its class blocks. A
// filter that is doubtful for one permutation is for all of them.
template <class Pack, class Scalar>
HREL_HD void permutations_of_groups(PermutationProblem<Scalar> const& problem, Index first_filter, int num_filters,
                                    Scratch memory, bool* doubtful) {
  Index const n = problem.acts.num_samples;
  auto const visit = [&](Index first, int count, RelevanceScratch<Pack> const& s, Pack not_finite,
                         int place) __attribute__((always_inline)) {
    for (Index r = 0; r < problem.num_permutations; ++r) {
      double joint[Lanes<Pack>::kCount];
      joint_entropies(problem.order, problem.labels, problem.permutations + r * n, s, count, joint, doubtful + place);
      Scalar* const row = problem.joint_entropy + r * problem.acts.num_filters + first;
      for (int lane = 0; lane < count; ++lane) row[lane] = static_cast<Scalar>(joint[lane] + not_finite[lane]);
    }
  };
  for_each_group(problem.acts, problem.labels.order, problem.sigma, first_filter, num_filters,
                 RelevanceScratch<Pack>(memory, problem.acts), visit);
}

}  // namespace hrel::cpu::HREL_LEVEL
