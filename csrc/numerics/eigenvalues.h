// Eigenvalues of one symmetric tridiagonal matrix in float64: the QL iteration without square roots in its inner loop
// (Pal, Walker and Kahan; Parlett, The Symmetric Eigenvalue Problem, section 8.15), absolute error a few eps |T|.
// SPDX-License-Identifier: MIT
#pragma once
#include <cmath>
#include <limits>

#include "numerics/config.h"
#include "numerics/views.h"

namespace hrel {

inline constexpr int kMaxSweepsPerEigenvalue = 60;  // 2 are usual; more than 30 has not been seen

// Overwrites tri.diagonal by the eigenvalues, unordered, and tri.off_diagonal by scratch. False if the iteration did
// not converge, which non-finite entries bring about.
HREL_HD bool eigenvalues(TridiagonalView<double> const& tri) {
  double* const d = tri.diagonal;
  double* const e2 = tri.off_diagonal;  // squared
  double norm = 0;
  for (Index i = 0; i < tri.size; ++i) {
    double const row = std::fabs(d[i]) + (i + 1 < tri.size ? std::fabs(e2[i]) : 0);
    norm = row > norm ? row : norm;
  }
  // Absolute, not relative to the neighbours: an eigenvalue below eps |T| is rounding anyway, and low rank deflates at
  // once.
  double const negligible =
      std::numeric_limits<double>::epsilon() * norm * std::numeric_limits<double>::epsilon() * norm;
  for (Index i = 0; i + 1 < tri.size; ++i) e2[i] *= e2[i];

  for (Index l = 0; l < tri.size; ++l) {
    for (int sweep = 0;; ++sweep) {
      Index m = l;
      while (m + 1 < tri.size && e2[m] > negligible) ++m;
      if (m + 1 < tri.size && !(e2[m] <= negligible)) return false;  // NaN
      if (m == l) break;
      if (sweep == kMaxSweepsPerEigenvalue) return false;

      // Wilkinson's shift, from the leading 2 x 2 block.
      double const root = std::sqrt(e2[l]);
      double const half_gap = (d[l + 1] - d[l]) / (2 * root);
      double const hypotenuse = std::sqrt(half_gap * half_gap + 1);
      double const shift = d[l] - root / (half_gap + (half_gap < 0 ? -hypotenuse : hypotenuse));

      double cosine = 1, sine = 0, gamma = d[m] - shift, p = gamma * gamma;
      for (Index i = m - 1; i >= l; --i) {
        double const r = p + e2[i];
        if (i != m - 1) e2[i + 1] = sine * r;
        double const last_cosine = cosine, last_gamma = gamma;
        cosine = p / r;
        sine = e2[i] / r;
        gamma = cosine * (d[i] - shift) - sine * last_gamma;
        d[i + 1] = last_gamma + (d[i] - gamma);
        p = cosine != 0 ? gamma * gamma / cosine : last_cosine * e2[i];
      }
      e2[l] = sine * p;
      d[l] = shift + gamma;
    }
  }
  return true;
}

}  // namespace hrel
