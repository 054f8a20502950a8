// Entropies in bits from tridiagonal matrices in shared memory: float32 by one thread per pole of the rational
// function, float64 by one thread per eigenvalue (bisection by Sturm counts; Barth, Martin, Wilkinson, Numer. Math. 9,
// 1967). SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"
#include "numerics/entropy.h"
#include "numerics/problem.h"
#include "numerics/rational_trace.h"

namespace hrel::cuda {

inline constexpr int kTraceTerms = kPoles + 1;  // the powers are one more term

struct TraceTerms {
  float term[kTraceTerms], lowest[kTraceTerms];
};

// Term `index` of tr g(T), and the smallest pivot met.
__device__ __forceinline__ void trace_term(TridiagonalView<float> const& tri, Rational const& rational, int index,
                                           TraceTerms& terms) {
  float lowest = 1e30f, value = 0;
  if (index < kPoles) {
    float const shift[1] = {static_cast<float>(rational.pole[index])};
    float trace[1];
    resolvent_traces(tri, rational.pole[index] >= kSmallestDirectPole, shift, trace, lowest);
    value = trace[0] * static_cast<float>(rational.weight[index]);
  } else {
    float sums[kPowers];
    power_sums(tri, sums);
    for (int k = 0; k < kPowers; ++k) value += sums[k] * static_cast<float>(rational.power[k]);
  }
  terms.term[index] = value;
  terms.lowest[index] = lowest;
}

// The entropy of the terms; NaN where the traces mean nothing.
__device__ __forceinline__ float entropy_bits_of_terms(TraceTerms const& terms, EntropyOrder const& order) {
  float trace = 0, lowest = 1e30f;
  for (int k = 0; k < kTraceTerms; ++k) {
    trace += terms.term[k];
    lowest = terms.lowest[k] < lowest ? terms.lowest[k] : lowest;
  }
  if (!is_semidefinite(lowest, order.rational)) return bits_to_float(kNaN);
  return static_cast<float>(entropy_bits_of_trace(trace, order.alpha - 1));
}

// alpha = 2 or 3, whose traces are power sums.
__device__ __forceinline__ float entropy_bits_of_powers(TridiagonalView<float> const& tri, Spectrum spectrum) {
  float sums[kPowers];
  power_sums(tri, sums);
  double const trace = spectrum == Spectrum::kSquare ? sums[1] : sums[2];
  return static_cast<float>(std::log2(trace) / (spectrum == Spectrum::kSquare ? -1 : -2));
}

// In shared memory: the tridiagonal forms of A and of A o B, and what their entropies need.
template <int kSize, int kWarps>
struct Spectra {
  float diagonal[2][kSize], off_diagonal[2][kSize];
  TraceTerms terms[2];
  float parts[2 * kWarps];  // of sums over the team

  __device__ __forceinline__ TridiagonalView<float> tri(int which, int size) {
    return {diagonal[which], off_diagonal[which], size};
  }
};

// The entropies in bits of the two forms, the second one unless `joint` is null, by the team of kThreads threads.
template <int kThreads, int kSize, int kWarps>
__device__ __forceinline__ void write_entropies(Spectra<kSize, kWarps>& spectra, int size, EntropyOrder const& order,
                                                float* own, float* joint, int thread) {
  // The second form in another warp where there is one, else in the other half of the warp.
  constexpr int kSecond = kThreads > kWarp ? kWarp : kWarp / 2;
  static_assert(kTraceTerms <= kWarp / 2);
  int const which = thread < kSecond ? 0 : 1, index = thread % kSecond;
  float* const entropy = which == 0 ? own : joint;
  bool const working = thread < 2 * kSecond && entropy != nullptr;
  TridiagonalView<float> const tri = spectra.tri(which, size);
  if (order.spectrum != Spectrum::kRational) {
    if (working && index == 0) *entropy = entropy_bits_of_powers(tri, order.spectrum);
    return;
  }
  if (working && index < kTraceTerms) trace_term(tri, order.rational, index, spectra.terms[which]);
  barrier<kThreads>();  // the terms are written
  if (working && index == 0) *entropy = entropy_bits_of_terms(spectra.terms[which], order);
}

inline constexpr int kBisections = 60;  // from an interval of at most 2 to below the rounding of the largest eigenvalue

// Eigenvalue `index`, counted from the smallest, of a positive semidefinite T in float64; a negative one is rounding
// and comes out as 0. NaN where T is not finite.
__device__ __forceinline__ double eigenvalue_by_bisection(TridiagonalView<double> const& tri, int index) {
  int const n = static_cast<int>(tri.size);
  double norm = 0, sum = 0;
  for (int i = 0; i < n; ++i) {
    double const before = i > 0 ? std::fabs(tri.off_diagonal[i - 1]) : 0;
    double const row = std::fabs(tri.diagonal[i]) + before + (i + 1 < n ? std::fabs(tri.off_diagonal[i]) : 0);
    norm = row > norm ? row : norm;
    sum += row;
  }
  double const tiny = 1e-300 + norm * 1e-32;  // takes the place of a pivot of 0
  double low = 0, high = norm;
  for (int step = 0; step < kBisections; ++step) {
    double const middle = (low + high) / 2;
    double pivot = tri.diagonal[0] - middle;
    int below = pivot < 0 ? 1 : 0;
    for (int i = 1; i < n; ++i) {
      double const e = tri.off_diagonal[i - 1];
      pivot = std::fabs(pivot) < tiny ? -tiny : pivot;
      pivot = tri.diagonal[i] - middle - e * e / pivot;
      below += pivot < 0 ? 1 : 0;
    }
    if (below > index) {
      high = middle;
    } else {
      low = middle;
    }
  }
  return (low + high) / 2 + (sum - sum);
}

}  // namespace hrel::cuda
