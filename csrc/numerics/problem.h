// The structs that cross from the bindings to a backend: operands and results of one op, passed by value.
// SPDX-License-Identifier: MIT
#pragma once
#include "numerics/config.h"
#include "numerics/views.h"

namespace hrel {

// g(x) ~ sum_k power[k] x^(k+1) + sum_j weight[j] x / (x + pole[j]), see numerics/rational_trace.h.
inline constexpr int kPowers = 3;
inline constexpr int kPoles = 10;

struct Rational {
  double power[kPowers];
  double pole[kPoles];
  double weight[kPoles];
};

// How tr g(A) is found.
enum class Spectrum {
  kSquare,       // alpha = 2: tr A^2 is the squared Frobenius norm, no reduction
  kCube,         // alpha = 3: tr A^3 of the tridiagonal form
  kRational,     // one sweep per pole over the tridiagonal form, no eigenvalues; float32 only
  kEigenvalues,  // any alpha, always in float64
};

struct EntropyOrder {
  double alpha;
  Spectrum spectrum;
  Rational rational;  // read for kRational only
};

// The labels of the samples, as classes or as a kernel.
template <class Scalar>
struct LabelView {
  Index const* order;          // [N] sample numbers, sorted by class
  Index const* class_offsets;  // [N + 1] class c is order[class_offsets[c]] .. order[class_offsets[c + 1] - 1]
  Scalar const* gram;          // [N, N] label kernel in the order of the samples; null: 1 within a class, 0 across
};

// Stored is the type of the activations in memory, Scalar that of everything else: float for half precision.
template <class Scalar, class Stored = Scalar>
struct RelevanceProblem {
  ActivationView<Stored> acts;  // [N, F, D]
  LabelView<Scalar> labels;
  Scalar const* sigma;  // [F]
  EntropyOrder order;
  Scalar* entropy;        // [F] S(A_f), bits
  Scalar* joint_entropy;  // [F] S(A_f, B), bits
};

// The same of labels as they come, and what the entropies are for.
template <class Scalar>
struct TermsProblem {
  ActivationView<Scalar> acts;  // [N, F, D]
  Index const* labels;          // [N] class ids >= 0, in any order
  Scalar const* sigma;          // [F]
  EntropyOrder order;
  Scalar* relevance;      // [F] S(A_f) + S(B) - S(A_f, B), bits
  Scalar* entropy;        // [F] S(A_f), bits
  Scalar* joint_entropy;  // [F] S(A_f, B), bits
  Scalar* label_entropy;  // [] S(B), bits
};

// The joint entropies of R permutations of the labels, whose classes keep their sizes.
template <class Scalar>
struct PermutationProblem {
  ActivationView<Scalar> acts;  // [N, F, D]
  LabelView<Scalar> labels;     // as classes
  Scalar const* sigma;          // [F]
  EntropyOrder order;
  Index const*
      permutations;  // [R, N] class c of the r-th holds the sorted samples permutations[r][class_offsets[c]] ..
  Index num_permutations;
  Scalar* joint_entropy;  // [R, F] S(A_f, B_r), bits
};

template <class Scalar>
struct EntropyProblem {
  GramView<Scalar> gram;  // [B, N, N] positive semidefinite, trace > 0
  EntropyOrder order;
  Scalar* entropy;  // [B] S(gram / tr gram), bits
};

// Alignment of the Gaussian kernel with the label kernel, for widths multiples[m] * mean distance.
template <class Scalar, class Stored = Scalar>
struct AlignmentProblem {
  ActivationView<Stored> acts;  // [N, F, D]
  LabelView<Scalar> labels;
  Scalar const* multiples;  // [M]
  Index num_widths;
  bool per_filter;        // R = F kernels, one per filter; else R = 1 kernel of the whole layer
  Scalar* mean_distance;  // [R] mean of |x_i - x_j| over all N^2 pairs
  Scalar* alignment;      // [R, M] 2 log2(<K, L> / (|K| |L|)), <= 0
};

// The width of the best alignment, for labels as they come.
template <class Scalar>
struct WidthProblem {
  ActivationView<Scalar> acts;  // [N, F, D]
  Index const* labels;          // [N] class ids >= 0, in any order
  Scalar const* multiples;      // [M]
  Index num_widths;
  bool per_filter;        // R = F or 1, as above
  Scalar* mean_distance;  // [R] as above
  Scalar* width;          // [R] the first of the best multiples * mean distance
};

}  // namespace hrel
