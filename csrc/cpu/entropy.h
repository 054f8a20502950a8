// S(A) of a group of matrices, one a lane. A is given as a triangle of A - shift 11'/n: the rank-one part that is kept
// out costs nothing where it is small, and saves the digits of the rest where it is nearly all of A.
// SPDX-License-Identifier: MIT
#pragma once
#include <cmath>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "cpu/lanes.h"
#include "cpu/pentadiagonal.h"
#include "cpu/scratch.h"
#include "cpu/tridiagonal.h"
#include "numerics/eigenvalues.h"
#include "numerics/entropy.h"
#include "numerics/problem.h"
#include "numerics/rational_trace.h"

namespace hrel::cpu::HREL_LEVEL {

// What matrices are reduced to: float32 to five diagonals, float64 to three, as eigenvalues take.
template <class Pack>
struct Bands {
  static constexpr bool kAreThree = std::is_same_v<typename Lanes<Pack>::Scalar, double>;
  using View = std::conditional_t<kAreThree, TridiagonalView<Pack>, PentadiagonalView<Pack>>;

  static View take(Scratch& memory, Index n) {
    Pack *const diagonal = memory.take<Pack>(n), *const first = memory.take<Pack>(n);
    if constexpr (kAreThree) {
      return {diagonal, first, n};
    } else {
      return {diagonal, first, memory.take<Pack>(n), n};
    }
  }

  // Rows first .. first + size - 1.
  HREL_HD static View rows(View const& bands, Index first, Index size) {
    if constexpr (kAreThree) {
      return {bands.diagonal + first, bands.off_diagonal + first, size};
    } else {
      return {bands.diagonal + first, bands.first + first, bands.second + first, size};
    }
  }

  HREL_HD static void uncouple(View const& bands) {
    for (Index i = 0; i < bands.size; ++i) {
      if constexpr (kAreThree) {
        bands.off_diagonal[i] = Pack{};
      } else {
        bands.first[i] = bands.second[i] = Pack{};
      }
    }
  }

  static Index reduction_elements(Index n) {
    return kAreThree ? elements_to_tridiagonalise(n) : elements_to_pentadiagonalise(n);
  }

  // As tridiagonalise and pentadiagonalise.
  HREL_HD static void reduce(Pack* triangle, View const& bands, Pack shift, Pack* scratch) {
    if constexpr (kAreThree) {
      tridiagonalise(triangle, bands, shift, scratch);
    } else {
      pentadiagonalise(triangle, bands, shift, scratch);
    }
  }
};

// Scratch of one group.
template <class Pack>
struct EntropyScratch {
  EntropyScratch(Scratch& memory, Index n)
      : triangle(memory.take<Pack>(triangle_elements(n))),
        reduction(memory.take<Pack>(Bands<Pack>::reduction_elements(n))),
        bands(Bands<Pack>::take(memory, n)),
        single{memory.take<double>(n), memory.take<double>(n), n} {}

  Pack* triangle;  // [N, N] of the group
  Pack* reduction;
  typename Bands<Pack>::View bands;  // [N]
  TridiagonalView<double> single;    // [N] one lane of it
};

// A power of two, a normal number, that brings x into [1, 2) or as near as it can: scaling by it rounds nothing.
template <class Pack>
HREL_HD double power_of_two_scale(double x) {
  int const limit = -static_cast<int>(Lanes<Pack>::kSmallestExponent), exponent = std::ilogb(x);
  return std::ldexp(1.0, exponent > limit ? -limit : exponent < -limit ? limit : -exponent);
}

// tr A^2.
template <class Pack>
HREL_HD Pack sum_of_squares(Pack const* triangle, Index n, Pack shift) {
  using Value = typename Lanes<Pack>::Scalar;
  Pack const mean = shift / static_cast<Value>(n);
  Pack sums[kTile * kTile] = {};  // one long float32 sum would lose digits
  for_each_element(n, [&](Index offset, Index row, Index column, int copies) __attribute__((always_inline)) {
    if (row >= n || column >= n) return;
    Pack const element = triangle[offset] + mean;
    sums[offset % (kTile * kTile)] += element * element * static_cast<Value>(copies);
  });
  Pack total{};
  for (Pack const& sum : sums) total += sum;
  return total;
}

// Entropies in bits of the lanes of s.bands. A lane of `doubtful` is set where the rational trace means nothing.
template <class Pack>
HREL_HD void entropies_of_bands(EntropyOrder const& order, EntropyScratch<Pack> const& s, int lanes, double* bits,
                                bool* doubtful) {
  double const beta = order.alpha - 1;
  if (order.spectrum == Spectrum::kRational) {
    Pack lowest;
    Pack const trace = rational_trace(s.bands, order.rational, lowest);
    for (int lane = 0; lane < lanes; ++lane) {
      bits[lane] = entropy_bits_of_trace(trace[lane], beta);
      doubtful[lane] |= !is_semidefinite(lowest[lane], order.rational);
    }
  } else if (order.spectrum == Spectrum::kCube) {
    Pack sums[kPowers];
    power_sums(s.bands, sums);
    for (int lane = 0; lane < lanes; ++lane) bits[lane] = std::log2(static_cast<double>(sums[2][lane])) / -2;
  } else if constexpr (Bands<Pack>::kAreThree) {
    for (int lane = 0; lane < lanes; ++lane) {
      bool finite = true;
      for (Index i = 0; i < s.bands.size; ++i) {
        s.single.diagonal[i] = s.bands.diagonal[i][lane];
        if (i + 1 < s.bands.size) s.single.off_diagonal[i] = s.bands.off_diagonal[i][lane];
        finite = finite && std::isfinite(s.single.diagonal[i]);
      }
      if (!finite) {
        bits[lane] = std::numeric_limits<double>::quiet_NaN();
      } else if (!eigenvalues(s.single)) {
        throw std::runtime_error("the eigenvalues of a Gram matrix did not converge");
      } else {
        bits[lane] = entropy_bits_of_eigenvalues(s.single.diagonal, s.bands.size, order.alpha);
      }
    }
  }
}

// Entropies in bits of the lanes of A = s.triangle + shift 11'/n, trace 1. Uses up the triangle.
template <class Pack>
HREL_HD void entropies_of_triangle(EntropyOrder const& order, EntropyScratch<Pack> const& s, Pack shift, int lanes,
                                   double* bits, bool* doubtful) {
  if (order.spectrum == Spectrum::kSquare) {
    Pack const sum = sum_of_squares(s.triangle, s.bands.size, shift);
    for (int lane = 0; lane < lanes; ++lane) bits[lane] = -std::log2(static_cast<double>(sum[lane]));
  } else {
    Bands<Pack>::reduce(s.triangle, s.bands, shift, s.reduction);
    entropies_of_bands(order, s, lanes, bits, doubtful);
  }
}

// triangle = A - shift 11'/n for A = gram / tr gram and the mean shift / n of A; padding 0. Returns shift. A lane whose
// matrix holds a value not finite or has no positive trace becomes NaN throughout; lanes past the last matrix repeat
// the first one.
template <class Pack, class Scalar>
HREL_HD Pack centred_gram(GramView<Scalar> const& gram, Index first_matrix, int num_matrices, Pack* triangle) {
  using Value = typename Lanes<Pack>::Scalar;
  constexpr int kLanes = Lanes<Pack>::kCount;
  Index const n = gram.size;
  Index matrix[kLanes];
  Pack scale, trace{};
  for (int lane = 0; lane < kLanes; ++lane) {
    matrix[lane] = first_matrix + (lane < num_matrices ? lane : 0);
    double largest = 0;  // of all elements: none exceeds the diagonal of a semidefinite matrix
    for (Index i = 0; i < n; ++i) {
      double const element = gram.at(matrix[lane], i, i);
      largest = element > largest ? element : largest;
    }
    scale[lane] = static_cast<Value>(power_of_two_scale<Pack>(largest));
    double sum = 0;
    for (Index i = 0; i < n; ++i) {
      sum += static_cast<double>(static_cast<Value>(gram.at(matrix[lane], i, i)) * scale[lane]);
    }
    trace[lane] = static_cast<Value>(sum > 0 ? sum : std::numeric_limits<double>::quiet_NaN());
  }

  Pack sums[kTile * kTile] = {};
  for_each_element(n, [&](Index offset, Index row, Index column, int copies) __attribute__((always_inline)) {
    if (row >= n || column >= n) return;
    Index const high = row > column ? row : column, low = row > column ? column : row;  // the lower triangle is read
    Pack element;
    for (int lane = 0; lane < kLanes; ++lane) element[lane] = static_cast<Value>(gram.at(matrix[lane], high, low));
    element *= scale;
    triangle[offset] = element;
    sums[offset % (kTile * kTile)] += element * static_cast<Value>(copies);
  });
  Pack total{};
  for (Pack const& sum : sums) total += sum;
  total += total - total;  // infinity becomes NaN

  Pack const mean = total / static_cast<Value>(n * n);
  for_each_element(n, [&](Index offset, Index row, Index column, int) __attribute__((always_inline)) {
    // The difference first: near-equal elements leave it exact.
    triangle[offset] = row < n && column < n ? (triangle[offset] - mean) / trace : Pack{};
  });
  return mean * static_cast<Value>(n) / trace;
}

// Matrices first_matrix .. first_matrix + num_matrices - 1, at most one a lane; `doubtful` as above.
template <class Pack, class Scalar>
HREL_HD void entropy_of_group(EntropyProblem<Scalar> const& problem, Index first_matrix, int num_matrices,
                              Scratch memory, bool* doubtful) {
  EntropyScratch<Pack> const s(memory, problem.gram.size);
  Pack const shift = centred_gram(problem.gram, first_matrix, num_matrices, s.triangle);
  double bits[Lanes<Pack>::kCount];
  entropies_of_triangle(problem.order, s, shift, num_matrices, bits, doubtful);
  for (int lane = 0; lane < num_matrices; ++lane) {
    problem.entropy[first_matrix + lane] = static_cast<Scalar>(bits[lane]);
  }
}

}  // namespace hrel::cpu::HREL_LEVEL
