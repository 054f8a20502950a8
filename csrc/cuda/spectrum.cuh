// Entropies in bits from band matrices in shared memory: float32 by one thread per pole of the rational function, float64
// by one thread per eigenvalue (bisection by Sturm counts; Barth, Martin, Wilkinson, Numer. Math. 9, 1967).
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"
#include "numerics/entropy.h"
#include "numerics/problem.h"
#include "numerics/rational_trace.h"

namespace hrel::cuda {

// What the entropy needs of a matrix, or of the parts it consists of: for every pole, its term of tr g and the smallest
// pivot met, and the traces of the powers.
struct Traces {
  float term[kPoles], lowest[kPoles], power[kPowers];
};

// No part yet: threads 0 .. kPoles - 1.
__device__ __forceinline__ void clear(Traces& traces, int thread) {
  if (thread < kPowers) traces.power[thread] = 0;
  if (thread >= kPoles) return;
  traces.term[thread] = 0;
  traces.lowest[thread] = 1e30f;
}

// The term of pole number k and the smallest pivot.
__device__ __forceinline__ float pole_term(TridiagonalView<float> const& tri, Rational const& rational, int k,
                                           float& lowest) {
  float const shift[1] = {static_cast<float>(rational.pole[k])};
  float trace[1];
  resolvent_traces(tri, rational.pole[k] >= kSmallestDirectPole, shift, trace, lowest);
  return trace[0] * static_cast<float>(rational.weight[k]);
}
__device__ __forceinline__ float pole_term(BandView<float> const& band, Rational const& rational, int k,
                                           float& lowest) {
  float trace;
  resolvent_trace(band, rational.pole[k] >= kSmallestDirectPole, static_cast<float>(rational.pole[k]), trace, lowest);
  return trace * static_cast<float>(rational.weight[k]);
}

// Adds those of a part that the poles give: threads 0 .. kPoles - 1.
template <class View>
__device__ __forceinline__ void add_pole_terms(View const& part, EntropyOrder const& order, Traces& traces,
                                               int thread) {
  if (thread >= kPoles || order.spectrum != Spectrum::kRational) return;
  float lowest = 1e30f;
  traces.term[thread] += pole_term(part, order.rational, thread, lowest);
  traces.lowest[thread] = lowest < traces.lowest[thread] ? lowest : traces.lowest[thread];
}

// All of a tridiagonal part: threads 0 .. kPoles.
__device__ __forceinline__ void add_traces(TridiagonalView<float> const& tri, EntropyOrder const& order, Traces& traces,
                                           int thread) {
  add_pole_terms(tri, order, traces, thread);
  if (thread != kPoles) return;
  float sums[kPowers];
  power_sums(tri, sums);
  for (int k = 0; k < kPowers; ++k) traces.power[k] += sums[k];
}

// The entropy in bits; NaN where the traces mean nothing.
__device__ __forceinline__ float entropy_bits_of_traces(Traces const& traces, EntropyOrder const& order) {
  if (order.spectrum != Spectrum::kRational) {  // alpha = 2 or 3
    bool const square = order.spectrum == Spectrum::kSquare;
    return static_cast<float>(std::log2(static_cast<double>(traces.power[square ? 1 : 2])) / (square ? -1 : -2));
  }
  float trace = 0, lowest = 1e30f;
  for (int k = 0; k < kPoles; ++k) {
    trace += traces.term[k];
    lowest = traces.lowest[k] < lowest ? traces.lowest[k] : lowest;
  }
  for (int k = 0; k < kPowers; ++k) trace += traces.power[k] * static_cast<float>(order.rational.power[k]);
  if (!is_semidefinite(lowest, order.rational)) return bits_to_float(kNaN);
  return static_cast<float>(entropy_bits_of_trace(trace, order.alpha - 1));
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
