// tr g(T) of a band matrix T without eigenvalues: g(x) ~ sum_k c_k x^k + sum_j w_j x / (x + t_j) and
//   tr T (T + t I)^-1 = n - t d/dt log det(T + t I),
// where log det is the sum of the logarithms of the pivots of T + t I = L D L^T. Differentiating the recursion of the
// pivots gives the trace in one sweep per pole: n steps, one division each. Of three diagonals the pivots are numbers;
// of five they are blocks of two rows, and their recursion the same.
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

// The same for five diagonals. With E the coupling of a block of two rows to the block before it, whose pivot is P,
//   P <- D + t I - E P^-1 E',   N <- t I + E P^-1 N P^-1 E',   term = tr P^-1 N,
// N being t times the derivative of the pivot, or, where the sum is direct, the pivot less that,
//   N <- D - 2 E P^-1 E' + E P^-1 N P^-1 E'.
// Blocks are taken apart into pivots that are numbers, P = L diag(pivot) L', and E and N go to the basis of L: inverses
// of P would be large where P is close to singular, and E of them a difference of large numbers.
template <int kSweeps, class Real>
HREL_HD void resolvent_traces(PentadiagonalView<Real> const& bands, bool direct, Real const (&shift)[kSweeps],
                              Real (&trace)[kSweeps], Real& lowest) {
  Real const zero = bands.diagonal[0] - bands.diagonal[0];
  Real inverse0[kSweeps], inverse1[kSweeps],
      ratio[kSweeps];                             // of the block before: 1 / pivot, and L = [1, 0; ratio, 1]
  Real k00[kSweeps], k01[kSweeps], k11[kSweeps];  // of the block before: P^-1 N P^-1
  Real sum[kSweeps], total[kSweeps];
  HREL_UNROLL(5)
  for (int k = 0; k < kSweeps; ++k) {
    inverse0[k] = inverse1[k] = ratio[k] = k00[k] = k01[k] = k11[k] = sum[k] = total[k] = zero;
  }
  Index i = 0;
  for (; i < bands.size; i += 2) {
    bool const two = i + 1 < bands.size;  // else a row of zeros makes up the last block
    Real const d0 = bands.diagonal[i], d1 = two ? bands.diagonal[i + 1] : zero, d01 = two ? bands.first[i] : zero;
    Real const far = i > 0 ? bands.second[i - 2] : zero, near = i > 0 ? bands.first[i - 1] : zero;
    Real const last = i > 0 && two ? bands.second[i - 1] : zero;  // E = [far, near; 0, last]
    HREL_UNROLL(5)
    for (int k = 0; k < kSweeps; ++k) {
      Real const turned = near - ratio[k] * far;  // E L'^-1 = [far, turned; 0, last]
      Real const weighted = turned * inverse1[k];
      Real const carried00 = far * far * inverse0[k] + turned * weighted, carried01 = last * weighted;
      Real const carried11 = last * last * inverse1[k];
      Real const k0 = far * k00[k] + turned * k01[k], k1 = far * k01[k] + turned * k11[k];
      Real const rest00 = d0 - carried00, rest01 = d01 - carried01, rest11 = d1 - carried11;
      Real const n00 = (direct ? rest00 - carried00 : shift[k]) + (far * k0 + turned * k1);
      Real const n01 = direct ? rest01 - carried01 + last * k1 : last * k1;
      Real const n11 = (direct ? rest11 - carried11 : shift[k]) + last * last * k11[k];
      Real const pivot0 = rest00 + shift[k];
      inverse0[k] = reciprocal(pivot0);
      ratio[k] = rest01 * inverse0[k];
      Real const pivot1 = rest11 + shift[k] - ratio[k] * rest01;
      inverse1[k] = reciprocal(pivot1);
      lowest = pivot0 < lowest ? pivot0 : lowest;
      lowest = pivot1 < lowest ? pivot1 : lowest;
      Real const turned01 = n01 - ratio[k] * n00, turned11 = n11 - ratio[k] * (n01 + turned01);  // L^-1 N L'^-1
      Real const term0 = n00 * inverse0[k], term1 = turned11 * inverse1[k];
      k00[k] = term0 * inverse0[k];
      k01[k] = turned01 * inverse0[k] * inverse1[k];
      k11[k] = term1 * inverse1[k];
      sum[k] += term0 + term1;
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
    trace[k] = direct ? total[k] : zero + static_cast<float>(i) - total[k];
  }
}

// The same for a band of kBand diagonals on either side and one pole. A row is eliminated from what the rows before it
// have left of T + t I; the sums W of that which later rows still await, and those of N, which is t times the
// derivative of W or, where the sum is direct, W less that, are carried along: with l the multipliers of the row,
//   W <- W - l w',   N <- [-l I] N [-l I]',   term = N_ii / w_ii.
// Rows may be eliminated from both ends: what the two have carried is then added up for the kBand rows between them.
template <class Real>
struct BandSweep {
  Real carried[kBand][kBand], changed[kBand][kBand];  // (a, b), b <= a: of the rows a and b after the last one
  Real sum, lowest;

  HREL_HD explicit BandSweep(Real zero) : sum(zero), lowest(zero + 1e30f) {
    HREL_UNROLL(8)
    for (int a = 0; a < kBand; ++a) {
      HREL_UNROLL(8)
      for (int b = 0; b <= a; ++b) carried[a][b] = changed[a][b] = zero;
    }
  }

  HREL_HD void eliminate(BandView<Real> const& band, bool direct, Real shift) {
    Real const zero = shift - shift;
    Real part = zero;
    int const rows = static_cast<int>(band.size);
    HREL_UNROLL(1)
    for (int i = 0; i < rows; ++i) {
      Real const d = band.diagonal[i];
      Real const* const row = band.beside + i * kBand;
      Real const pivot = d + carried[0][0] + shift, inverse = reciprocal(pivot);
      lowest = pivot < lowest ? pivot : lowest;
      Real const n0 = (direct ? d : shift) + changed[0][0];
      Real w[kBand + 1], n[kBand + 1], l[kBand + 1], m[kBand + 1];
      HREL_UNROLL(8)
      for (int a = 1; a <= kBand; ++a) {
        w[a] = a < kBand ? row[a - 1] + carried[a % kBand][0] : row[a - 1];
        n[a] = direct ? row[a - 1] : zero;
        if (a < kBand) n[a] += changed[a % kBand][0];
        l[a] = w[a] * inverse;
        m[a] = n[a] - l[a] * n0;
      }
      HREL_UNROLL(8)
      for (int a = 1; a <= kBand; ++a) {
        HREL_UNROLL(8)
        for (int b = 1; b <= a; ++b) {
          Real const old = a < kBand ? carried[a % kBand][b % kBand] : zero;
          Real const old_changed = a < kBand ? changed[a % kBand][b % kBand] : zero;
          carried[a - 1][b - 1] = old - l[a] * w[b];
          changed[a - 1][b - 1] = old_changed - l[a] * m[b] - n[a] * l[b];
        }
      }
      part += n0 * inverse;
      if (i % kRowsAtOnce == 0) {
        sum += part;
        part = zero;
      }
    }
    sum += part;
  }

  // What another sweep carries that came from the other end; take(value) gives its value.
  template <class Take>
  HREL_HD void meet(Take const& take) {
    HREL_UNROLL(8)
    for (int a = 0; a < kBand; ++a) {
      HREL_UNROLL(8)
      for (int b = 0; b <= a; ++b) {
        int const from_end_a = kBand - 1 - b, from_end_b = kBand - 1 - a;  // what the other one calls (a, b)
        if (a > from_end_a) continue;
        Real const of_other[2] = {take(carried[from_end_a][from_end_b]), take(changed[from_end_a][from_end_b])};
        if (a < from_end_a) {
          carried[from_end_a][from_end_b] += take(carried[a][b]);
          changed[from_end_a][from_end_b] += take(changed[a][b]);
        }
        carried[a][b] += of_other[0];
        changed[a][b] += of_other[1];
      }
    }
    sum += take(sum);
    Real const other_lowest = take(lowest);
    lowest = other_lowest < lowest ? other_lowest : lowest;
  }
};

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

template <class Real>
HREL_HD void power_sums(PentadiagonalView<Real> const& bands, Real (&sums)[kPowers]) {
  Real const zero = bands.diagonal[0] - bands.diagonal[0];
  Real part[kPowers];
  for (int k = 0; k < kPowers; ++k) sums[k] = part[k] = zero;
  for (Index i = 0; i < bands.size; ++i) {
    Real const d = bands.diagonal[i];
    part[0] += d;
    part[1] += d * d;
    part[2] += d * d * d;
    if (i > 0) {
      Real const squared = bands.first[i - 1] * bands.first[i - 1];
      part[1] += 2 * squared;
      part[2] += 3 * squared * (bands.diagonal[i - 1] + d);
    }
    if (i > 1) {
      Real const second = bands.second[i - 2];
      part[1] += 2 * second * second;
      part[2] += 3 * second * (second * (bands.diagonal[i - 2] + d) + 2 * bands.first[i - 2] * bands.first[i - 1]);
    }
    if (i % kRowsAtOnce == 0) {
      for (int k = 0; k < kPowers; ++k) {
        sums[k] += part[k];
        part[k] = zero;
      }
    }
  }
  for (int k = 0; k < kPowers; ++k) sums[k] += part[k];
}

// The part of the row i in them: tr T, tr T^2, tr T^3 are the sums over all rows.
template <class Real>
HREL_HD void power_terms(BandView<Real> const& band, Index i, Real (&terms)[kPowers]) {
  Real const* const row = band.beside + i * kBand;
  Real const d = band.diagonal[i];
  Real squares = d - d, cubes = squares;
  HREL_UNROLL(8)
  for (int a = 0; a < kBand; ++a) {  // the rows i + 1 + b and i + 1 + a
    if (i + 1 + a >= band.size) break;
    squares += row[a] * row[a];
    Real inner = row[a] * (d + band.diagonal[i + 1 + a]);
    HREL_UNROLL(8)
    for (int b = 0; b < a; ++b) inner += 2 * row[b] * band.beside[(i + 1 + b) * kBand + a - b - 1];
    cubes += row[a] * inner;
  }
  terms[0] = d;
  terms[1] = d * d + 2 * squares;
  terms[2] = d * d * d + 3 * cubes;
}

// Whether the traces mean something. No pivot of a semidefinite T + t I lies below t, so the smallest one of all poles
// tells how far below 0 rounding has taken an eigenvalue of T: close to a pole x / (x + t) is huge.
HREL_HD bool is_semidefinite(double lowest, Rational const& rational) {
  constexpr double kShare = 0.6;  // above 0.75 whole layers of full rank are found doubtful, by ordinary rounding
  return lowest > kShare * rational.pole[0];
}

// tr g(T). `lowest` as in resolvent_traces, over all poles.
template <template <class> class View, class Real>
HREL_HD Real rational_trace(View<Real> const& bands, Rational const& rational, Real& lowest) {
  Real sums[kPowers];
  power_sums(bands, sums);
  Real const zero = bands.diagonal[0] - bands.diagonal[0];
  lowest = zero + 1e30f;
  Real total = zero;
  for (int k = 0; k < kPowers; ++k) total += sums[k] * static_cast<float>(rational.power[k]);
  static_assert(kPoles % kSweepsAtOnce == 0);
  for (int first = 0; first < kPoles; first += kSweepsAtOnce) {
    Real shift[kSweepsAtOnce], trace[kSweepsAtOnce];
    for (int k = 0; k < kSweepsAtOnce; ++k) shift[k] = zero + static_cast<float>(rational.pole[first + k]);
    if (rational.pole[first] >= kSmallestDirectPole) {
      resolvent_traces(bands, true, shift, trace, lowest);
    } else {
      resolvent_traces(bands, false, shift, trace, lowest);
    }
    for (int k = 0; k < kSweepsAtOnce; ++k) total += trace[k] * static_cast<float>(rational.weight[first + k]);
  }
  return total;
}

}  // namespace hrel
