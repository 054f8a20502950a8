// tr g(T) of a tridiagonal T without eigenvalues: g(x) ~ sum_k c_k x^k + sum_j w_j x / (x + t_j) and
//   tr T (T + t I)^-1 = n - t d/dt log det(T + t I),
// where log det is the sum of the logarithms of the pivots of T + t I = L D L^T. Differentiating the recursion of the
// pivots gives the trace in one sweep per pole: n steps, one division each.
// SPDX-License-Identifier: MIT
#pragma once
#include "numerics/config.h"
#include "numerics/problem.h"
#include "numerics/views.h"

namespace hrel {

inline constexpr int kSweepsAtOnce =
    5;  // independent chains of divisions: hides their latency, still fits 16 registers

// Rows per partial sum. Where all eigenvalues are equal, a long float32 sum rounds every term the same way: 3e-5 bits.
inline constexpr Index kRowsAtOnce = 16;

// The smallest pole from which the sum of lambda / (lambda + t) is taken as it is. Below, n minus the sum of
// t / (lambda + t) is the accurate form: all of its terms are positive; above, that difference would cancel.
inline constexpr double kSmallestDirectPole = 0.002;

// 1 / x of a normal number, on a GPU to one unit of the last place: what the chain of pivots waits for.
template <class Real>
HREL_HD Real reciprocal(Real x) {
#if defined(__CUDA_ARCH__)
  Real result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1 / x;
#endif
}

// trace[k] = tr T (T + shift[k] I)^-1 for kSweeps poles, all direct or none. `lowest` takes the smallest pivot seen,
// see is_semidefinite.
template <int kSweeps, class Real>
HREL_HD void resolvent_traces(TridiagonalView<Real> const& tri, bool direct, Real const (&shift)[kSweeps],
                              Real (&trace)[kSweeps], Real& lowest) {
  Real const zero = tri.diagonal[0] - tri.diagonal[0];
  Real inverse[kSweeps], term[kSweeps], sum[kSweeps], total[kSweeps];
  HREL_UNROLL(5)
  for (int k = 0; k < kSweeps; ++k) {
    Real const pivot = tri.diagonal[0] + shift[k];
    lowest = pivot < lowest ? pivot : lowest;
    inverse[k] = reciprocal(pivot);
    sum[k] = term[k] = (direct ? tri.diagonal[0] : shift[k]) * inverse[k];
    total[k] = zero;
  }
  for (Index i = 1; i < tri.size; ++i) {
    Real const squared = tri.off_diagonal[i - 1] * tri.off_diagonal[i - 1];
    HREL_UNROLL(5)
    for (int k = 0; k < kSweeps; ++k) {
      Real const carried = squared * inverse[k];
      Real const rest = tri.diagonal[i] - carried;
      Real const pivot = rest + shift[k];
      lowest = pivot < lowest ? pivot : lowest;
      inverse[k] = reciprocal(pivot);
      term[k] = ((direct ? rest - carried : shift[k]) + carried * term[k]) * inverse[k];
      sum[k] += term[k];
    }
    if (i % kRowsAtOnce == 0) {
      HREL_UNROLL(5)
      for (int k = 0; k < kSweeps; ++k) {
        total[k] += sum[k];
        sum[k] = zero;
      }
    }
  }
  HREL_UNROLL(5)
  for (int k = 0; k < kSweeps; ++k) {
    total[k] += sum[k];
    trace[k] = direct ? total[k] : zero + static_cast<float>(tri.size) - total[k];
  }
}

// tr T, tr T^2, tr T^3.
template <class Real>
HREL_HD void power_sums(TridiagonalView<Real> const& tri, Real (&sums)[kPowers]) {
  Real previous = tri.diagonal[0];
  Real const zero = previous - previous;
  Real part[kPowers] = {previous, previous * previous, previous * previous * previous};
  for (int k = 0; k < kPowers; ++k) sums[k] = zero;
  for (Index i = 1; i < tri.size; ++i) {
    Real const d = tri.diagonal[i], squared = tri.off_diagonal[i - 1] * tri.off_diagonal[i - 1];
    part[0] += d;
    part[1] += d * d + 2 * squared;
    part[2] += d * d * d + 3 * squared * (previous + d);
    previous = d;
    if (i % kRowsAtOnce == 0) {
      for (int k = 0; k < kPowers; ++k) {
        sums[k] += part[k];
        part[k] = zero;
      }
    }
  }
  for (int k = 0; k < kPowers; ++k) sums[k] += part[k];
}

// Whether the traces mean something. No pivot of a semidefinite T + t I lies below t, so the smallest one of all poles
// tells how far below 0 rounding has taken an eigenvalue of T: close to a pole x / (x + t) is huge.
HREL_HD bool is_semidefinite(double lowest, Rational const& rational) {
  constexpr double kShare = 0.6;  // above 0.75 whole layers of full rank are found doubtful, by ordinary rounding
  return lowest > kShare * rational.pole[0];
}

// tr g(T). `lowest` as in resolvent_traces, over all poles.
template <class Real>
HREL_HD Real rational_trace(TridiagonalView<Real> const& tri, Rational const& rational, Real& lowest) {
  Real sums[kPowers];
  power_sums(tri, sums);
  Real const zero = tri.diagonal[0] - tri.diagonal[0];
  lowest = zero + 1e30f;
  Real total = zero;
  for (int k = 0; k < kPowers; ++k) total += sums[k] * static_cast<float>(rational.power[k]);
  static_assert(kPoles % kSweepsAtOnce == 0);
  for (int first = 0; first < kPoles; first += kSweepsAtOnce) {
    Real shift[kSweepsAtOnce], trace[kSweepsAtOnce];
    for (int k = 0; k < kSweepsAtOnce; ++k) shift[k] = zero + static_cast<float>(rational.pole[first + k]);
    if (rational.pole[first] >= kSmallestDirectPole) {
      resolvent_traces(tri, true, shift, trace, lowest);
    } else {
      resolvent_traces(tri, false, shift, trace, lowest);
    }
    for (int k = 0; k < kSweepsAtOnce; ++k) total += trace[k] * static_cast<float>(rational.weight[first + k]);
  }
  return total;
}

}  // namespace hrel
