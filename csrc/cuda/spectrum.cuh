// Entropies in bits from band matrices in shared memory: float32 by one thread per pole of the rational function,
// float64 by one thread per eigenvalue (bisection by Sturm counts; Barth, Martin, Wilkinson, Numer. Math. 9, 1967).
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

// A band matrix whose rows are eliminated from both ends at once.
struct TwoEndedBand {
  BandView<float> whole;     // whose first `above` rows are those of the upper end
  BandView<float> reversed;  // the rows of the lower end, from the last one of the matrix on
  BandView<float> between;   // those that are left, up to kBand
  int above;
};

template <int kSize>
struct BandStorage {
  float diagonal[kSize], beside[kSize * kBand];
  float reversed_diagonal[kSize], reversed_beside[kSize * kBand];
  float between_diagonal[kBand], between_beside[kBand * kBand];
};

template <int kSize>
__device__ __forceinline__ TwoEndedBand two_ended_band(BandStorage<kSize>& s, int n) {
  int const between = n < kBand ? n : kBand, above = (n - between) / 2;
  return {{s.diagonal, s.beside, n},
          {s.reversed_diagonal, s.reversed_beside, n - above - between},
          {s.between_diagonal, s.between_beside, between},
          above};
}

__device__ __forceinline__ void add_pole(Traces& traces, Rational const& rational, int k, float trace, float lowest) {
  traces.term[k] += trace * static_cast<float>(rational.weight[k]);
  traces.lowest[k] = lowest < traces.lowest[k] ? lowest : traces.lowest[k];
}

// tr T (T + t)^-1 of a band T for the poles t, and the smallest pivot met, by one warp: thread k of each half takes
// pole k from one end, and has the result.
__device__ __forceinline__ void resolvent_trace(TwoEndedBand const& band, Rational const& rational, float& trace,
                                                float& lowest, int lane) {
  constexpr int kHalf = kWarp / 2;
  static_assert(kPoles <= kHalf);
  int const pole = lane % kHalf < kPoles ? lane % kHalf : 0;
  float const shift = static_cast<float>(rational.pole[pole]);
  bool const direct = rational.pole[pole] >= kSmallestDirectPole;
  BandSweep<float> sweep(0.0f);
  BandView<float> part =
      lane < kHalf ? BandView<float>{band.whole.diagonal, band.whole.beside, band.above} : band.reversed;
  // One loop, so that the elimination exists once.
#pragma unroll 1
  for (int step = 0; step < 2; ++step) {
    sweep.eliminate(part, direct, shift);
    if (step == 0) sweep.meet([](float value) { return __shfl_xor_sync(kAllLanes, value, kHalf); });
    part = band.between;
  }
  trace = direct ? sweep.sum : static_cast<float>(band.whole.size) - sweep.sum;
  lowest = sweep.lowest;
}

// All of a tridiagonal part: threads 0 .. kPoles.
__device__ __forceinline__ void add_traces(TridiagonalView<float> const& tri, EntropyOrder const& order, Traces& traces,
                                           int thread) {
  if (thread < kPoles && order.spectrum == Spectrum::kRational) {
    float const shift[1] = {static_cast<float>(order.rational.pole[thread])};
    float trace[1], lowest = 1e30f;
    resolvent_traces(tri, order.rational.pole[thread] >= kSmallestDirectPole, shift, trace, lowest);
    add_pole(traces, order.rational, thread, trace[0], lowest);
  }
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
