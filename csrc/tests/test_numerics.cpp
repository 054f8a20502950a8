// The scalar numerics by hand: 2 x 2 and 3 x 3 matrices and closed forms.
// SPDX-License-Identifier: MIT
#include <algorithm>
#include <limits>
#include <vector>

#include "check.h"
#include "numerics/eigenvalues.h"
#include "numerics/entropy.h"
#include "numerics/rational_trace.h"

namespace hrel {
namespace {

void eigenvalues_of_small_matrices_are_their_closed_forms() {
  double d2[] = {2, 2}, e2[] = {1, 0};
  CHECK(eigenvalues({d2, e2, 2}));
  std::sort(d2, d2 + 2);
  CHECK_NEAR(d2[0], 1, 1e-15);
  CHECK_NEAR(d2[1], 3, 1e-15);

  // The second difference matrix of order n has the eigenvalues 2 - 2 cos(k pi / (n + 1)).
  for (Index n : {1, 3, 10, 101}) {
    std::vector<double> d(n, 2.0), e(n, -1.0);
    CHECK(eigenvalues({d.data(), e.data(), n}));
    std::sort(d.begin(), d.end());
    double const pi = std::acos(-1.0);
    for (Index k = 1; k <= n; ++k) CHECK_NEAR(d[k - 1], 2 - 2 * std::cos(k * pi / static_cast<double>(n + 1)), 1e-13);
  }
}

void uncoupled_rows_are_their_own_eigenvalues() {
  double d[] = {0.5, 0.25, 0, 0.25}, e[] = {0, 0, 0, 0};
  CHECK(eigenvalues({d, e, 4}));
  CHECK_NEAR(d[0], 0.5, 0);
  CHECK_NEAR(d[2], 0, 0);
}

void a_matrix_with_nan_does_not_converge_and_says_so() {
  double const nan = std::numeric_limits<double>::quiet_NaN();
  double d[] = {1, 1, 1}, e[] = {nan, 1, 0};
  CHECK(!eigenvalues({d, e, 3}));
}

void entropy_of_equal_eigenvalues_is_log2_n_for_every_alpha() {
  for (Index n : {1, 2, 100}) {
    std::vector<double> const spectrum(n, 1.0 / static_cast<double>(n));
    for (double alpha : {0.1, 0.7, 0.99, 1.0, 1.01, 1.3, 1.31, 2.0, 50.0, 1000.0}) {
      CHECK_NEAR(entropy_bits_of_eigenvalues(spectrum.data(), n, alpha), std::log2(static_cast<double>(n)), 1e-12);
    }
  }
}

void entropy_of_a_quarter_and_three_quarters_is_its_golden_number() {
  double const spectrum[] = {0.25, 0.75, 0, -1e-17};  // a negative eigenvalue is rounding
  CHECK_NEAR(entropy_bits_of_eigenvalues(spectrum, 4, 1), 2 - 0.75 * std::log2(3), 1e-15);
  CHECK_NEAR(entropy_bits_of_eigenvalues(spectrum, 4, 2), -std::log2(0.625), 1e-15);
  CHECK_NEAR(entropy_bits_of_eigenvalues(spectrum, 4, 3), -std::log2(28.0 / 64) / 2, 1e-15);
  CHECK_NEAR(entropy_bits_of_eigenvalues(spectrum, 4, 0.5), 2 * std::log2((1 + std::sqrt(3)) / 2), 1e-15);
}

void the_two_forms_of_the_entropy_meet() {
  double const spectrum[] = {0.6, 0.3, 0.1};
  double const below = entropy_bits_of_eigenvalues(spectrum, 3, 1 + kLargestStableBeta);
  double const above = entropy_bits_of_eigenvalues(spectrum, 3, 1 + kLargestStableBeta + 1e-9);
  CHECK_NEAR(below, above, 1e-9);
}

void entropy_of_nan_is_nan() {
  double const spectrum[] = {0.5, std::numeric_limits<double>::quiet_NaN()};
  CHECK(std::isnan(entropy_bits_of_eigenvalues(spectrum, 2, 1.01)));
  CHECK(std::isnan(entropy_bits_of_eigenvalues(spectrum, 2, 5)));
}

void power_sums_are_traces_of_powers() {
  // T = [[1, 2, 0], [2, 3, 4], [0, 4, 5]]: tr T^2 = 75, tr T^3 = 581 (by multiplication).
  double d[] = {1, 3, 5}, e[] = {2, 4, 0}, sums[kPowers];
  power_sums(TridiagonalView<double>{d, e, 3}, sums);
  CHECK_NEAR(sums[0], 9, 0);
  CHECK_NEAR(sums[1], 75, 1e-13);
  CHECK_NEAR(sums[2], 1 + 27 + 125 + 3 * 4 * (1 + 3) + 3 * 16 * (3 + 5), 1e-12);
}

// A symmetric matrix, whole.
struct Full {
  Index n;
  std::vector<double> elements;

  explicit Full(Index size) : n(size), elements(size * size) {}
  double& at(Index i, Index j) { return elements[i * n + j]; }
  double at(Index i, Index j) const { return elements[i * n + j]; }
};

void check_power_sums(Full const& matrix, double const (&sums)[kPowers], double tolerance) {
  double expected[kPowers] = {};
  for (Index i = 0; i < matrix.n; ++i) {
    expected[0] += matrix.at(i, i);
    for (Index j = 0; j < matrix.n; ++j) {
      expected[1] += matrix.at(i, j) * matrix.at(j, i);
      for (Index k = 0; k < matrix.n; ++k) expected[2] += matrix.at(i, j) * matrix.at(j, k) * matrix.at(k, i);
    }
  }
  for (int k = 0; k < kPowers; ++k) CHECK_NEAR(sums[k], expected[k], tolerance);
}

// tr (T + t I)^-1 by Gauss and Jordan.
double trace_of_inverse(Full const& matrix, double t) {
  Index const n = matrix.n, width = 2 * n;
  std::vector<double> a(n * width);
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < n; ++j) a[i * width + j] = matrix.at(i, j) + (i == j ? t : 0);
    a[i * width + n + i] = 1;
  }
  double trace = 0;
  for (Index k = 0; k < n; ++k) {
    for (Index i = 0; i < n; ++i) {
      double const factor = i == k ? 0 : a[i * width + k] / a[k * width + k];
      for (Index j = 0; j < width; ++j) a[i * width + j] -= factor * a[k * width + j];
    }
    for (Index j = width - 1; j >= 0; --j) a[k * width + j] /= a[k * width + k];
  }
  for (Index k = 0; k < n; ++k) trace += a[k * width + n + k];
  return trace;
}

// The pentadiagonal matrices of 1 to 7 rows.
struct Pentadiagonal {
  double d[7] = {0.5, 0.3, 0.2, 0.4, 0.6, 0.1, 0.35}, e[7] = {0.1, -0.05, 0.07, 0.02, -0.03, 0.06},
         f[7] = {0.04, -0.02, 0.05, 0.01, -0.06};
  Full full;

  explicit Pentadiagonal(Index size) : full(size) {
    for (Index i = 0; i < size; ++i) {
      full.at(i, i) = d[i];
      if (i + 1 < size) full.at(i, i + 1) = full.at(i + 1, i) = e[i];
      if (i + 2 < size) full.at(i, i + 2) = full.at(i + 2, i) = f[i];
    }
  }
  PentadiagonalView<double> view() { return {d, e, f, full.n}; }
};

// A positive definite matrix of 2 kBand + 1 diagonals, as L L', and its views: whole, its lower end from the last row
// on, and the rows between.
struct Band {
  Full full;
  Index above, between;
  std::vector<double> diagonal, beside, reversed_diagonal, reversed_beside, between_diagonal, between_beside;

  explicit Band(Index size)
      : full(size),
        above(size > kBand ? (size - kBand) / 2 : 0),
        between(size > kBand ? kBand : size),
        diagonal(size),
        beside(size * kBand),
        reversed_diagonal(size),
        reversed_beside(size * kBand),
        between_diagonal(kBand),
        between_beside(kBand * kBand) {
    Full factor(size);
    for (Index i = 0; i < size; ++i) {
      for (Index j = i > kBand ? i - kBand : 0; j <= i; ++j) {
        factor.at(i, j) = i == j ? 0.3 : 0.1 * std::sin(static_cast<double>(3 * i + 7 * j));
      }
    }
    for (Index i = 0; i < size; ++i) {
      for (Index j = 0; j < size; ++j) {
        for (Index k = 0; k < size; ++k) full.at(i, j) += factor.at(i, k) * factor.at(j, k);
      }
    }
    auto const element = [&](Index i, Index j) { return i >= 0 && j >= 0 && i < size && j < size ? full.at(i, j) : 0; };
    for (Index i = 0; i < size; ++i) {
      diagonal[i] = reversed_diagonal[size - 1 - i] = full.at(i, i);
      for (Index d = 0; d < kBand; ++d) {
        beside[i * kBand + d] = element(i + 1 + d, i);
        reversed_beside[(size - 1 - i) * kBand + d] = element(i - 1 - d, i);
      }
    }
    for (Index i = 0; i < between; ++i) {
      between_diagonal[i] = diagonal[above + i];
      for (Index d = 0; i + 1 + d < between; ++d) between_beside[i * kBand + d] = beside[(above + i) * kBand + d];
    }
  }
  BandView<double> whole() { return {diagonal.data(), beside.data(), full.n}; }
};

void power_terms_of_a_band_sum_to_traces_of_powers() {
  for (Index n : {1, 2, 8, 9, 20}) {
    Band band(n);
    double sums[kPowers] = {};
    for (Index i = 0; i < n; ++i) {
      double terms[kPowers];
      power_terms(band.whole(), i, terms);
      for (int k = 0; k < kPowers; ++k) sums[k] += terms[k];
    }
    check_power_sums(band.full, sums, 1e-13);
  }
}

void sweeps_of_a_band_are_traces_of_the_inverse_from_one_end_and_from_two() {
  for (Index n : {1, 2, 7, 8, 9, 16, 17, 30}) {
    Band band(n);
    for (double shift : {1e-6, 1e-4, 0.01, 0.3, 2.0}) {
      double const expected = static_cast<double>(n) - shift * trace_of_inverse(band.full, shift);
      for (bool direct : {false, true}) {
        BandSweep<double> one(0);
        one.eliminate(band.whole(), direct, shift);
        CHECK_NEAR(direct ? one.sum : static_cast<double>(n) - one.sum, expected, 1e-11);
        CHECK(one.lowest > 0);

        // The other end, whose values are given in the order in which they are asked for.
        BandSweep<double> upper(0), lower(0);
        upper.eliminate({band.diagonal.data(), band.beside.data(), band.above}, direct, shift);
        lower.eliminate({band.reversed_diagonal.data(), band.reversed_beside.data(), n - band.above - band.between},
                        direct, shift);
        std::vector<double> asked;
        BandSweep<double>(lower).meet([&](double value) {
          asked.push_back(value);
          return value;
        });
        std::size_t next = 0;
        upper.meet([&](double) { return asked[next++]; });
        CHECK(next == asked.size());
        upper.eliminate({band.between_diagonal.data(), band.between_beside.data(), band.between}, direct, shift);
        CHECK_NEAR(direct ? upper.sum : static_cast<double>(n) - upper.sum, expected, 1e-11);
        CHECK(upper.lowest > 0);
      }
    }
  }
}

void power_sums_of_five_diagonals_are_traces_of_powers() {
  for (Index n = 1; n <= 7; ++n) {
    Pentadiagonal matrix(n);
    double sums[kPowers];
    power_sums(matrix.view(), sums);
    check_power_sums(matrix.full, sums, 1e-14);
  }
}

void resolvent_traces_of_five_diagonals_are_those_of_the_inverse() {
  for (Index n = 1; n <= 7; ++n) {
    double const shift[kSweepsAtOnce] = {1e-6, 1e-4, 0.01, 0.3, 2};
    double direct[kSweepsAtOnce], indirect[kSweepsAtOnce], lowest = 1e30;
    Pentadiagonal matrix(n);
    resolvent_traces(matrix.view(), true, shift, direct, lowest);
    resolvent_traces(matrix.view(), false, shift, indirect, lowest);
    CHECK(lowest > 0);
    for (int k = 0; k < kSweepsAtOnce; ++k) {
      double const expected = static_cast<double>(n) - shift[k] * trace_of_inverse(matrix.full, shift[k]);
      CHECK_NEAR(direct[k], expected, 1e-13);
      CHECK_NEAR(indirect[k], expected, 1e-7);  // n is added and taken away in float32
    }
  }
}

void resolvent_traces_are_sums_over_eigenvalues() {
  double d[] = {0.5, 0.3, 0.2}, e[] = {0.1, 0.05, 0};
  double const shift[kSweepsAtOnce] = {1e-6, 1e-4, 0.01, 0.3, 2};
  double direct[kSweepsAtOnce], indirect[kSweepsAtOnce], lowest = 1e30;
  TridiagonalView<double> const tri{d, e, 3};
  resolvent_traces(tri, true, shift, direct, lowest);
  resolvent_traces(tri, false, shift, indirect, lowest);
  CHECK(lowest > 0);
  CHECK(eigenvalues(tri));
  for (int k = 0; k < kSweepsAtOnce; ++k) {
    double expected = 0;
    for (double x : d) expected += x / (x + shift[k]);
    CHECK_NEAR(direct[k], expected, 1e-13);
    CHECK_NEAR(indirect[k], expected, 1e-7);  // 3 is added and taken away in float32
  }
}

void an_indefinite_matrix_shows_a_pivot_that_is_not_positive() {
  double d[] = {0.5, -0.2, 0.7}, e[] = {0.1, 0.1, 0}, lowest;
  rational_trace(TridiagonalView<double>{d, e, 3}, Rational{{1, 0, 0}, {1e-6, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {}}, lowest);
  CHECK(lowest <= 0);
  double f[] = {0.01, 0, 0};
  rational_trace(PentadiagonalView<double>{d, e, f, 3}, Rational{{1, 0, 0}, {1e-6, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {}},
                 lowest);
  CHECK(lowest <= 0);
}

}  // namespace
}  // namespace hrel

int main() {
  using namespace hrel;
  eigenvalues_of_small_matrices_are_their_closed_forms();
  uncoupled_rows_are_their_own_eigenvalues();
  a_matrix_with_nan_does_not_converge_and_says_so();
  entropy_of_equal_eigenvalues_is_log2_n_for_every_alpha();
  entropy_of_a_quarter_and_three_quarters_is_its_golden_number();
  the_two_forms_of_the_entropy_meet();
  entropy_of_nan_is_nan();
  power_sums_are_traces_of_powers();
  power_sums_of_five_diagonals_are_traces_of_powers();
  resolvent_traces_of_five_diagonals_are_those_of_the_inverse();
  power_terms_of_a_band_sum_to_traces_of_powers();
  sweeps_of_a_band_are_traces_of_the_inverse_from_one_end_and_from_two();
  resolvent_traces_are_sums_over_eigenvalues();
  an_indefinite_matrix_shows_a_pivot_that_is_not_positive();
  return test::result();
}
