// Alignment of Gaussian kernels with the label kernel L for many widths, from one set of distances:
//   2 log2(<K, L> / (|K| |L|)),  K_ij = exp(-d2_ij / sigma^2),  sigma = multiple * mean distance.
// Source: the objective of HRel's width search, after Cristianini et al., On kernel-target alignment, 2001.
// SPDX-License-Identifier: MIT
#pragma once
#include <cmath>

#include "cpu/gram.h"
#include "cpu/labels.h"
#include "cpu/lanes.h"
#include "cpu/scratch.h"
#include "numerics/problem.h"

namespace hrel::cpu::HREL_LEVEL {

// One kernel a lane: squared_distance(offset) is the pack of the element, `kernel` takes K.
template <class Pack, class Scalar, class SquaredDistance>
HREL_HD void alignment_of_kernels(LabelView<Scalar> const& labels, Index n, Pack inverse_sigma,
                                  SquaredDistance const& squared_distance, Pack* kernel, double* alignment) {
  using Value = typename Lanes<Pack>::Scalar;
  Pack squares[kTile * kTile] = {}, products[kTile * kTile] = {};  // one long float32 sum would lose digits
  for_each_element(n, [&](Index offset, Index row, Index column, int copies) __attribute__((always_inline)) {
    if (row >= n || column >= n) return;
    Pack const element = 1 - one_minus_exp(squared_distance(offset) * inverse_sigma * inverse_sigma);
    kernel[offset] = element;
    squares[offset % (kTile * kTile)] += element * element * static_cast<Value>(copies);
  });
  double label_squares = 0;
  for_each_labelled_element(labels, n, [&](Index offset, Scalar weight, int copies) __attribute__((always_inline)) {
    products[offset % (kTile * kTile)] += kernel[offset] * static_cast<Value>(weight * static_cast<Scalar>(copies));
    label_squares += static_cast<double>(weight) * static_cast<double>(weight) * copies;
  });
  Pack square{}, product{};
  for (Pack const& part : squares) square += part;
  for (Pack const& part : products) product += part;
  for (int lane = 0; lane < Lanes<Pack>::kCount; ++lane) {
    double const p = product[lane], q = square[lane];
    alignment[lane] = 2 * std::log2(p / std::sqrt(q * label_squares));
  }
}

// 1 / sigma; where all maps are equal every width gives the same kernel, and 0 gives it without dividing by 0.
HREL_HD double inverse_width(double multiple, double mean_distance) {
  return mean_distance > 0 ? 1 / (multiple * mean_distance) : 0;
}

// The widths of one filter a lane, all from the distances of the group.
template <class Pack, class Scalar>
HREL_HD void alignment_of_group(AlignmentProblem<Scalar> const& problem, Index first_filter, int num_filters,
                                Scratch memory) {
  using Value = typename Lanes<Pack>::Scalar;
  constexpr int kLanes = Lanes<Pack>::kCount;
  Index const n = problem.acts.num_samples;
  Pack* const triangle = memory.take<Pack>(triangle_elements(n));
  Pack* const kernel = memory.take<Pack>(triangle_elements(n));
  DistanceScratch<Pack> const distances(memory, n);
  FilterSource<Scalar, Pack> const source{problem.acts, first_filter, num_filters, splat<Pack>(1)};
  squared_distances(source, problem.labels.order, distances, triangle);
  double mean[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    mean[lane] = mean_distance(n, [&](Index offset) { return triangle[offset][lane]; });
    if (lane < num_filters) problem.mean_distance[first_filter + lane] = static_cast<Scalar>(mean[lane]);
  }
  for (Index m = 0; m < problem.num_widths; ++m) {
    Pack inverse_sigma;
    for (int lane = 0; lane < kLanes; ++lane) {
      inverse_sigma[lane] = static_cast<Value>(inverse_width(problem.multiples[m], mean[lane]));
    }
    double alignment[kLanes];
    alignment_of_kernels(
        problem.labels, n, inverse_sigma, [&](Index offset) { return triangle[offset]; }, kernel, alignment);
    for (int lane = 0; lane < num_filters; ++lane) {
      problem.alignment[(first_filter + lane) * problem.num_widths + m] = static_cast<Scalar>(alignment[lane]);
    }
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

// Widths first_width .. first_width + num_widths - 1 of the layer, one a lane.
template <class Pack, class Scalar>
HREL_HD void alignment_of_widths(AlignmentProblem<Scalar> const& problem, Scalar const* distances, Index first_width,
                                 int num_widths, Scratch memory) {
  using Value = typename Lanes<Pack>::Scalar;
  constexpr int kLanes = Lanes<Pack>::kCount;
  Index const n = problem.acts.num_samples;
  Pack* const kernel = memory.take<Pack>(triangle_elements(n));
  Pack inverse_sigma;
  for (int lane = 0; lane < kLanes; ++lane) {
    double const multiple = problem.multiples[first_width + (lane < num_widths ? lane : 0)];
    inverse_sigma[lane] = static_cast<Value>(inverse_width(multiple, problem.mean_distance[0]));
  }
  double alignment[kLanes];
  alignment_of_kernels(
      problem.labels, n, inverse_sigma, [&](Index offset) { return splat<Pack>(distances[offset]); }, kernel,
      alignment);
  for (int lane = 0; lane < num_widths; ++lane) {
    problem.alignment[first_width + lane] = static_cast<Scalar>(alignment[lane]);
  }
}

}  // namespace hrel::cpu::HREL_LEVEL
