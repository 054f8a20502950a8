// From a spectrum to the matrix-based Renyi entropy in bits, beta = alpha - 1:
//   S = -log1p(beta G) / (beta ln 2),  G = sum_i g(lambda_i),  g(x) = x expm1(beta ln x) / beta   (x ln x for beta =
//   0),
// which divides nothing by 1 - alpha and so does not cancel near alpha = 1; far from it 1 + beta G cancels instead, and
//   S = log2(sum_i lambda_i^alpha) / (1 - alpha).
// Source: Sanchez Giraldo, Rao, Principe, IEEE Trans. Inf. Theory 61 (2015), definition 2, with the first form for
// rounding. SPDX-License-Identifier: MIT
#pragma once
#include <cmath>

#include "numerics/config.h"

namespace hrel {

inline constexpr double kLn2 = 0.693147180559945309417;
inline constexpr double kLargestStableBeta = 0.3;  // |beta| up to which 1 + beta G keeps its digits

HREL_HD double entropy_bits_of_trace(double g_trace, double beta) {
  return beta == 0 ? -g_trace / kLn2 : -std::log1p(beta * g_trace) / (beta * kLn2);
}

// Of eigenvalues with sum 1. A negative one is rounding and counts as 0; NaN stays NaN.
HREL_HD double entropy_bits_of_eigenvalues(double const* eigenvalues, Index size, double alpha) {
  double const beta = alpha - 1;
  if (std::fabs(beta) <= kLargestStableBeta) {
    double trace = 0;
    for (Index i = 0; i < size; ++i) {
      double const x = eigenvalues[i];
      if (x <= 0) continue;
      double const logarithm = std::log(x);
      trace += x * (beta == 0 ? logarithm : std::expm1(beta * logarithm) / beta);
    }
    return entropy_bits_of_trace(trace, beta);
  }
  // Relative to the largest eigenvalue: a large alpha would underflow.
  double largest = 0;
  for (Index i = 0; i < size; ++i) largest = eigenvalues[i] > largest ? eigenvalues[i] : largest;
  double sum = 0;
  for (Index i = 0; i < size; ++i) {
    double const x = eigenvalues[i];
    if (!(x <= 0)) sum += std::pow(x / largest, alpha);
  }
  return (std::log2(sum) + alpha * std::log2(largest)) / (1 - alpha);
}

}  // namespace hrel
