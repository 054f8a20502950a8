// Householder reduction of several symmetric matrices at once, one matrix a lane, to tridiagonal form. Per step, update
// and next product share one pass over the triangle: A <- A - v w' - w v', then y = A x (three multiply-adds per
// element). SPDX-License-Identifier: MIT
#pragma once
#include <cmath>

#include "cpu/lanes.h"
#include "cpu/triangle.h"
#include "numerics/views.h"

namespace hrel::cpu::HREL_LEVEL {

HREL_HD Index elements_to_tridiagonalise(Index size) { return 4 * padded(size); }

// One tile: A -= v_i w_j' + w_i v_j', and from the same registers y_i += A x_j and, off the diagonal, y_j += A' x_i.
template <bool kOnDiagonal, class Pack>
HREL_HD void update_and_multiply_tile(Pack* __restrict tile, Pack const* __restrict vi, Pack const* __restrict wi,
                                      Pack const* __restrict xi, Pack* __restrict yi, Pack const* __restrict vj,
                                      Pack const* __restrict wj, Pack const* __restrict xj, Pack* __restrict yj) {
  Pack updated[kTile * kTile];
#pragma GCC unroll 4
  for (int j = 0; j < kTile; ++j) {
    Pack const v = vj[j], w = wj[j];
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) {
      Pack element = tile[i * kTile + j];
      element -= vi[i] * w;
      element -= wi[i] * v;
      updated[i * kTile + j] = tile[i * kTile + j] = element;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kTile; ++i) {
    Pack sum = yi[i];
#pragma GCC unroll 4
    for (int j = 0; j < kTile; ++j) sum += updated[i * kTile + j] * xj[j];
    yi[i] = sum;
  }
  if constexpr (!kOnDiagonal) {
#pragma GCC unroll 4
    for (int j = 0; j < kTile; ++j) {
      Pack sum = yj[j];
#pragma GCC unroll 4
      for (int i = 0; i < kTile; ++i) sum += updated[i * kTile + j] * xi[i];
      yj[j] = sum;
    }
  }
}

// The leading `size` rows.
template <class Pack>
HREL_HD void update_and_multiply(Pack* triangle, Index size, Pack const* v, Pack const* w, Pack const* x, Pack* y) {
  Index const tiles = num_tiles(size);
  for (Index i = 0; i < tiles * kTile; ++i) y[i] = Pack{};
  for (Index row = 0; row < tiles; ++row) {
    Index const i = row * kTile;
    for (Index column = 0; column < row; ++column) {
      Index const j = column * kTile;
      update_and_multiply_tile<false>(triangle + tile_offset(row, column), v + i, w + i, x + i, y + i, v + j, w + j,
                                      x + j, y + j);
    }
    update_and_multiply_tile<true>(triangle + tile_offset(row, row), v + i, w + i, x + i, y + i, v + i, w + i, x + i,
                                   static_cast<Pack*>(nullptr));
  }
}

// x . y over `size` elements; both are 0 from there to the next multiple of 4. Four partial sums: one long float32 sum
// costs 1e-5 bits of the entropy.
template <class Pack>
HREL_HD Pack dot(Pack const* x, Pack const* y, Index size) {
  Pack sum[4] = {};
  for (Index i = 0; i < size; i += 4) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) sum[q] += x[i + q] * y[i + q];
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Reduces the triangle of A - shift 11'/n (overwritten) to the tridiagonal form of A. Scratch:
// elements_to_tridiagonalise(n).
//
// The rank-one part is kept out because it may be all there is (a dead filter): its rounding would hide the rest. The
// first reflector takes 1/sqrt(n) to -e_{n-1}, so that the part returns as `shift` added to one element of the
// diagonal.
template <class Pack>
HREL_HD void tridiagonalise(Pack* triangle, TridiagonalView<Pack> const& tri, Pack shift, Pack* scratch) {
  using L = Lanes<Pack>;
  using Scalar = typename L::Scalar;
  Index const n = tri.size, rounded = padded(n);
  Pack* const d = tri.diagonal;
  Pack* const e = tri.off_diagonal;
  Pack *const v = scratch, *const w = v + rounded, *const x = w + rounded, *const y = x + rounded;
  for (Index i = 0; i < 4 * rounded; ++i) scratch[i] = Pack{};

  // With u in x and H = I - u u' / h:  H A H = A - v w' - w v',  v = u,  w = A u / h - (u' A u / 2 h^2) u.
  auto const reflect = [&](Index size, Pack inverse_h) __attribute__((always_inline)) {
    update_and_multiply(triangle, size, v, w, x, y);  // applies the previous update on the way
    Pack const along = dot(x, y, size) * inverse_h * inverse_h * Scalar(0.5);
    for (Index i = 0; i < size; ++i) {
      v[i] = x[i];
      w[i] = y[i] * inverse_h - along * x[i];
    }
  };

  if (n > 1) {
    Scalar const scale = -1 / std::sqrt(static_cast<Scalar>(n));
    for (Index i = 0; i < n; ++i) x[i] = splat<Pack>(scale);
    x[n - 1] = splat<Pack>(scale - 1);
    reflect(n, splat<Pack>(1 / (1 - scale)));
  }

  for (Index k = n - 1; k >= 2; --k) {
    Pack const vk = v[k], wk = w[k];
    auto const updated = [&](Index j) __attribute__((always_inline)) {
      return triangle[element_offset(k, j)] - vk * w[j] - wk * v[j];
    };
    d[k] = triangle[element_offset(k, k)] - 2 * vk * wk;
    for (Index j = 0; j < k - 1; ++j) x[j] = updated(j);
    for (Index j = k - 1; j < rounded; ++j) x[j] = Pack{};
    Pack const tail = dot(x, x, k - 1);  // |x|^2 without the element beside the diagonal
    Pack const head = updated(k - 1);
    v[k] = w[k] = Pack{};

    // Normalised, u = x / beta - e_{k-1}, |u|^2 = 2 h: nothing overflows on matrices of low rank.
    Pack const norm = square_root(tail + head * head);
    Pack const signed_norm = head > 0 ? -norm : norm;
    auto const reduced = tail <= L::kNegligibleSquare;
    Pack const beta = reduced ? head : signed_norm;
    Pack const scale = reduced ? Pack{} : 1 / signed_norm;
    Pack const inverse_h = reduced ? Pack{} : 1 / (1 - head * scale);
    e[k - 1] = beta;
    x[k - 1] = head - beta;
    for (Index j = 0; j < k; ++j) x[j] *= scale;
    reflect(k, inverse_h);
  }

  if (n >= 2) {
    d[1] = triangle[element_offset(1, 1)] - 2 * v[1] * w[1];
    e[0] = triangle[element_offset(1, 0)] - v[1] * w[0] - w[1] * v[0];
  }
  d[0] = triangle[0] - 2 * v[0] * w[0];
  d[n - 1] += shift;
}

}  // namespace hrel::cpu::HREL_LEVEL
