// From the keyword arguments of Python, addresses and extents, to the problem structs of a backend. Rechecks what would
// otherwise read foreign memory: nulls, extents, counts.
// SPDX-License-Identifier: MIT
#pragma once
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/launch.h"
#include "numerics/problem.h"

namespace hrel::bindings {

using Address = std::uintptr_t;
using Extents = std::array<Index, 3>;  // (N, F, D) or (B, N, N), or strides in elements

template <class T>
T* pointer(Address address, char const* name) {
  if (address == 0) throw std::invalid_argument(std::string(name) + " must not be null");
  return reinterpret_cast<T*>(address);
}

template <class Scalar>
ActivationView<Scalar> activations(Address address, Extents shape, Extents strides) {
  if (shape[0] < 1 || shape[1] < 1 || shape[2] < 1) throw std::invalid_argument("acts must have no empty extent");
  return {pointer<Scalar const>(address, "acts_ptr"), shape[0], shape[1], shape[2], strides[0], strides[1], strides[2]};
}

template <class Scalar>
LabelView<Scalar> labels(Address order, Address class_offsets, Address gram) {
  return {pointer<Index const>(order, "order_ptr"), pointer<Index const>(class_offsets, "class_offsets_ptr"),
          reinterpret_cast<Scalar const*>(gram)};
}

inline void sort_by_class(Address labels_ptr, Index num_samples, Address order_ptr, Address class_offsets_ptr,
                          Address smallest_ptr) {
  if (num_samples < 1) throw std::invalid_argument("labels must hold at least one sample");
  cpu::sort_by_class(pointer<Index const>(labels_ptr, "labels_ptr"), num_samples,
                     pointer<Index>(order_ptr, "order_ptr"), pointer<Index>(class_offsets_ptr, "class_offsets_ptr"),
                     pointer<Index>(smallest_ptr, "smallest_ptr"));
}

// With the powers, poles and weights of numerics/rational_trace.h, or empty lists where no rational function is
// accurate enough.
inline EntropyOrder entropy_order(double alpha, std::vector<double> const& powers, std::vector<double> const& poles,
                                  std::vector<double> const& weights) {
  if (!(alpha > 0)) throw std::invalid_argument("alpha must be > 0");
  EntropyOrder order{alpha, Spectrum::kEigenvalues, {}};
  if (alpha == 2) {
    order.spectrum = Spectrum::kSquare;
  } else if (alpha == 3) {
    order.spectrum = Spectrum::kCube;
  } else if (!poles.empty()) {
    if (powers.size() != kPowers || poles.size() != kPoles || weights.size() != kPoles) {
      throw std::invalid_argument("a rational function has 3 powers, 10 poles and 10 weights");
    }
    order.spectrum = Spectrum::kRational;
    for (int k = 0; k < kPowers; ++k) order.rational.power[k] = powers[k];
    for (int j = 0; j < kPoles; ++j) {
      order.rational.pole[j] = poles[j];
      order.rational.weight[j] = weights[j];
    }
  }
  return order;
}

template <class Scalar, class Stored>
RelevanceProblem<Scalar, Stored> relevance_problem(Address acts_ptr, Extents acts_shape, Extents acts_strides,
                                                   Address order_ptr, Address class_offsets_ptr, Address label_gram_ptr,
                                                   Address sigma_ptr, EntropyOrder const& entropy_order,
                                                   Address entropy_ptr, Address joint_entropy_ptr) {
  return {activations<Stored>(acts_ptr, acts_shape, acts_strides),
          labels<Scalar>(order_ptr, class_offsets_ptr, label_gram_ptr),
          pointer<Scalar const>(sigma_ptr, "sigma_ptr"),
          entropy_order,
          pointer<Scalar>(entropy_ptr, "entropy_ptr"),
          pointer<Scalar>(joint_entropy_ptr, "joint_entropy_ptr")};
}

template <class Scalar>
TermsProblem<Scalar> terms_problem(Address acts_ptr, Extents acts_shape, Extents acts_strides, Address labels_ptr,
                                   Address sigma_ptr, EntropyOrder const& entropy_order, Address relevance_ptr,
                                   Address entropy_ptr, Address joint_entropy_ptr, Address label_entropy_ptr) {
  return {
      activations<Scalar>(acts_ptr, acts_shape, acts_strides), pointer<Index const>(labels_ptr, "labels_ptr"),
      pointer<Scalar const>(sigma_ptr, "sigma_ptr"),           entropy_order,
      pointer<Scalar>(relevance_ptr, "relevance_ptr"),         pointer<Scalar>(entropy_ptr, "entropy_ptr"),
      pointer<Scalar>(joint_entropy_ptr, "joint_entropy_ptr"), pointer<Scalar>(label_entropy_ptr, "label_entropy_ptr")};
}

template <class Scalar, class Stored>
AlignmentProblem<Scalar, Stored> alignment_problem(Address acts_ptr, Extents acts_shape, Extents acts_strides,
                                                   Address order_ptr, Address class_offsets_ptr, Address label_gram_ptr,
                                                   Address multiples_ptr, Index num_widths, bool per_filter,
                                                   Address mean_distance_ptr, Address alignment_ptr) {
  if (num_widths < 1) throw std::invalid_argument("num_widths must be >= 1");
  return {activations<Stored>(acts_ptr, acts_shape, acts_strides),
          labels<Scalar>(order_ptr, class_offsets_ptr, label_gram_ptr),
          pointer<Scalar const>(multiples_ptr, "multiples_ptr"),
          num_widths,
          per_filter,
          pointer<Scalar>(mean_distance_ptr, "mean_distance_ptr"),
          pointer<Scalar>(alignment_ptr, "alignment_ptr")};
}

template <class Scalar>
WidthProblem<Scalar> width_problem(Address acts_ptr, Extents acts_shape, Extents acts_strides, Address labels_ptr,
                                   Address multiples_ptr, Index num_widths, bool per_filter, Address mean_distance_ptr,
                                   Address width_ptr) {
  if (num_widths < 1) throw std::invalid_argument("num_widths must be >= 1");
  return {activations<Scalar>(acts_ptr, acts_shape, acts_strides),
          pointer<Index const>(labels_ptr, "labels_ptr"),
          pointer<Scalar const>(multiples_ptr, "multiples_ptr"),
          num_widths,
          per_filter,
          pointer<Scalar>(mean_distance_ptr, "mean_distance_ptr"),
          pointer<Scalar>(width_ptr, "width_ptr")};
}

template <class Scalar>
PermutationProblem<Scalar> permutation_problem(Address acts_ptr, Extents acts_shape, Extents acts_strides,
                                               Address order_ptr, Address class_offsets_ptr, Address sigma_ptr,
                                               EntropyOrder const& entropy_order, Address permutations_ptr,
                                               Index num_permutations, Address joint_entropy_ptr) {
  if (num_permutations < 1) throw std::invalid_argument("num_permutations must be >= 1");
  return {activations<Scalar>(acts_ptr, acts_shape, acts_strides),
          labels<Scalar>(order_ptr, class_offsets_ptr, 0),
          pointer<Scalar const>(sigma_ptr, "sigma_ptr"),
          entropy_order,
          pointer<Index const>(permutations_ptr, "permutations_ptr"),
          num_permutations,
          pointer<Scalar>(joint_entropy_ptr, "joint_entropy_ptr")};
}

template <class Scalar>
EntropyProblem<Scalar> entropy_problem(Address gram_ptr, Extents gram_shape, Extents gram_strides,
                                       EntropyOrder const& entropy_order, Address entropy_ptr) {
  auto const [num_matrices, size, columns] = gram_shape;
  if (num_matrices < 1 || size < 1 || columns != size) {
    throw std::invalid_argument("gram must hold square matrices and have no empty extent");
  }
  return {{pointer<Scalar const>(gram_ptr, "gram_ptr"), num_matrices, size, gram_strides[0], gram_strides[1],
           gram_strides[2]},
          entropy_order,
          pointer<Scalar>(entropy_ptr, "entropy_ptr")};
}

}  // namespace hrel::bindings
