// Householder reduction of several symmetric matrices at once, one matrix a lane, to five diagonals: a band from which
// the trace is found as it is (numerics/rational_trace.h), and which takes half the passes over the matrix that three
// diagonals do. Of each two columns the reflectors are found first, then one pass over the triangle applies those of
// the two before, A <- A - sum_k v_k w_k' + w_k v_k', and multiplies, y_k = A x_k: eight multiply-adds for each element
// that comes from the cache, which is what tridiagonal.h waits for. SPDX-License-Identifier: MIT
#pragma once
#include <cmath>

#include "cpu/lanes.h"
#include "cpu/triangle.h"
#include "numerics/views.h"

namespace hrel::cpu::HREL_LEVEL {

// The two reflectors I - u u' / h of a step and what becomes of them. All are [padded(n)], 0 past the active rows up to
// the end of their tile.
template <class Pack>
struct Reflectors {
  static constexpr int kVectors = 8;

  Reflectors(Pack* memory, Index rounded)
      : x{memory, memory + rounded},
        y{memory + 2 * rounded, memory + 3 * rounded},
        v{memory + 4 * rounded, memory + 5 * rounded},
        w{memory + 6 * rounded, memory + 7 * rounded} {}

  Pack *x[2], *y[2];  // the vectors u and A u
  Pack *v[2], *w[2];  // the update that the next pass applies
};

// Rows of a tile that a pass takes at a time: their vectors stay in registers, of which there are more where packs have
// neighbours. Not all of a whole tile's do; to read these again takes less than to read the columns twice.
template <class Pack>
inline constexpr int kRowsOfPass = kNeighbours<Pack> > 1 ? kTile : 1;

// One or more columns of a tile: A -= v_i w_j' + w_i v_j', y_i += A x_j and, off the diagonal, y_j += A' x_i.
template <class Pack>
struct RowsOfPass {
  using Wide = WidePack<Pack>;
  static constexpr int kRows = kRowsOfPass<Pack>;
  Wide v[2][kRows], w[2][kRows], x[2][kRows];
  PairPack<Pack> sum[2][kRows];

  HREL_HD RowsOfPass(Reflectors<Pack> const& s, Index first) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        v[k][i] = load_repeated(s.v[k] + first + i);
        w[k][i] = load_repeated(s.w[k] + first + i);
        x[k][i] = load_repeated(s.x[k] + first + i);
        sum[k][i] = PairPack<Pack>{};
      }
    }
  }

  template <bool kOnDiagonal>
  HREL_HD void columns(Reflectors<Pack> const& s, Index j, Pack* __restrict tile) {
    Wide v0 = load_neighbours(s.v[0] + j), w0 = load_neighbours(s.w[0] + j), x0 = load_neighbours(s.x[0] + j);
    Wide v1 = load_neighbours(s.v[1] + j), w1 = load_neighbours(s.w[1] + j), x1 = load_neighbours(s.x[1] + j);
    keep_in_registers(v0, w0, x0, v1, w1, x1);
    Wide y0{}, y1{};
    if constexpr (!kOnDiagonal) {
      y0 = load_neighbours(s.y[0] + j);
      y1 = load_neighbours(s.y[1] + j);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      Wide element = load_neighbours(tile + i * kTile);
      element -= v[0][i] * w0;
      element -= w[0][i] * v0;
      element -= v[1][i] * w1;
      element -= w[1][i] * v1;
      store_neighbours(tile + i * kTile, element);
      add_pairs_of_products<Pack>(element, x0, sum[0][i]);
      add_pairs_of_products<Pack>(element, x1, sum[1][i]);
      if constexpr (!kOnDiagonal) {
        y0 += element * x[0][i];
        y1 += element * x[1][i];
      }
    }
    if constexpr (!kOnDiagonal) {
      store_neighbours(s.y[0] + j, y0);
      store_neighbours(s.y[1] + j, y1);
    }
  }
};

// The pass over the leading `size` rows.
template <class Pack>
HREL_HD void update_and_multiply(Pack* triangle, Index size, Reflectors<Pack> const& s) {
  Index const tiles = num_tiles(size);
  for (Index i = 0; i < tiles * kTile; i += kNeighbours<Pack>) {
    store_neighbours(s.y[0] + i, WidePack<Pack>{});
    store_neighbours(s.y[1] + i, WidePack<Pack>{});
  }
  for (Index tile_row = 0; tile_row < tiles; ++tile_row) {
    Index const i = tile_row * kTile;
    for (int first = 0; first < kTile; first += kRowsOfPass<Pack>) {
      RowsOfPass<Pack> rows(s, i + first);
      Pack* tile = triangle + tile_offset(tile_row, 0) + first * kTile;
      for (Index j = 0; j < i; j += kTile, tile += kTile * kTile) {
#pragma GCC unroll 4
        for (int c = 0; c < kTile; c += kNeighbours<Pack>) rows.template columns<false>(s, j + c, tile + c);
      }
#pragma GCC unroll 4
      for (int c = 0; c < kTile; c += kNeighbours<Pack>) rows.template columns<true>(s, i + c, tile + c);
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        Pack* const y = s.y[k] + i + first;
#pragma GCC unroll 4
        for (int r = 0; r < kRowsOfPass<Pack>; ++r) y[r] += sum_of_pair<Pack>(rows.sum[k][r]);
      }
    }
  }
}

// y[0] = A x[0] of a triangle of `size` rows for x = scale (1 .. 1) - e_last: sums of its rows, a third of the steps
// that the pass takes.
template <class Pack>
HREL_HD void multiply_by_mean(Pack const* triangle, Index size, typename Lanes<Pack>::Scalar scale,
                              Reflectors<Pack> const& s) {
  using Wide = WidePack<Pack>;
  constexpr int kColumns = kTile / kNeighbours<Pack>;  // of a tile, in registers
  Index const tiles = num_tiles(size);
  Pack* const y = s.y[0];
  for (Index tile_row = 0; tile_row < tiles; ++tile_row) {
    Pack const* tile = triangle + tile_offset(tile_row, 0);
    PairPack<Pack> sum[kTile] = {};
    for (Index tile_column = 0; tile_column <= tile_row; ++tile_column, tile += kTile * kTile) {
      Wide of_columns[kColumns] = {};
#pragma GCC unroll 4
      for (int i = 0; i < kTile; ++i) {
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) {
          Wide const element = load_neighbours(tile + i * kTile + c * kNeighbours<Pack>);
          add_pairs<Pack>(element, sum[i]);
          of_columns[c] += element;
        }
      }
      if (tile_column == tile_row) continue;
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        Pack* const at = y + tile_column * kTile + c * kNeighbours<Pack>;
        store_neighbours(at, load_neighbours(at) + of_columns[c]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) y[tile_row * kTile + i] = sum_of_pair<Pack>(sum[i]);
  }
  for (Index j = 0; j < size; ++j) y[j] = y[j] * scale - triangle[element_offset(size - 1, j)];
}

// Sums of products over the rows of a vector, which are added up in four parts: one long float32 sum costs 1e-5 bits of
// the entropy.
template <class Pack>
struct Dot {
  static constexpr int kParts = kTile / kNeighbours<Pack>;
  WidePack<Pack> part[kParts] = {};

  HREL_HD Pack sum() const {
    Pack total = sum_of_neighbours<Pack>(part[0]);
#pragma GCC unroll 4
    for (int q = 1; q < kParts; ++q) total += sum_of_neighbours<Pack>(part[q]);
    return total;
  }
};

// Calls step(j, part) for the rows up to `size`, some side by side at a time, of which the last may lie past it.
template <class Pack, class Step>
HREL_HD void for_neighbours(Index size, Step const& step) {
  for (Index j = 0; j < size; j += kTile) {
#pragma GCC unroll 4
    for (int q = 0; q < Dot<Pack>::kParts; ++q) step(j + q * kNeighbours<Pack>, q);
  }
}

// The reflector that takes a vector to beta e_last; u = scale x but for its last element.
template <class Pack>
struct Reflector {
  Pack beta, scale, last, inverse_h;

  // For a vector with the element `head` at `last` and the sum of squares `tail` of the others. Normalised,
  // u = x / beta - e_last, |u|^2 = 2 h: nothing overflows on matrices of low rank.
  HREL_HD Reflector(Pack head, Pack tail) {
    Pack const norm = square_root(tail + head * head);
    Pack const signed_norm = head > 0 ? -norm : norm;
    auto const reduced = tail <= Lanes<Pack>::kNegligibleSquare;
    beta = reduced ? head : signed_norm;
    scale = reduced ? Pack{} : 1 / signed_norm;
    last = reduced ? Pack{} : head * scale - 1;
    inverse_h = reduced ? Pack{} : -1 / last;
  }
};

HREL_HD Index elements_to_pentadiagonalise(Index size) { return Reflectors<FloatPack>::kVectors * padded(size); }

// Reduces the triangle of A - shift 11'/n (overwritten) to the pentadiagonal form of A. Scratch:
// elements_to_pentadiagonalise(n).
//
// The rank-one part is kept out because it may be all there is (a dead filter): its rounding would hide the rest. The
// first reflector takes 1/sqrt(n) to -e_{n-1}, so that the part returns as `shift` added to one element of the
// diagonal.
template <class Pack>
HREL_HD void pentadiagonalise(Pack* triangle, PentadiagonalView<Pack> const& bands, Pack shift, Pack* scratch) {
  using Wide = WidePack<Pack>;
  using Scalar = typename Lanes<Pack>::Scalar;
  Index const n = bands.size, rounded = padded(n);
  Pack *const d = bands.diagonal, *const e = bands.first, *const f = bands.second;
  for (Index i = 0; i < Reflectors<Pack>::kVectors * rounded; ++i) scratch[i] = Pack{};
  Reflectors<Pack> const s(scratch, rounded);
  Pack *const x0 = s.x[0], *const x1 = s.x[1];

  // With u_k in x[k] and h_k, A <- H_1 (H_0 A H_0) H_1 as an update for the next pass:
  //   H A H = A - v w' - w v',  v = u,  w = A u / h - (u' A u / 2 h^2) u,
  // where the second reflector meets A u_1 after the first, A u_1 - v_0 (w_0' u_1) - w_0 (v_0' u_1).
  auto const reflect = [&](Index size, Pack inverse_h0, Pack inverse_h1, Pack u0u1) __attribute__((always_inline)) {
    Dot<Pack> u0y0, u1y0, u1y1;
    for_neighbours<Pack>(size, [&](Index j, int part) __attribute__((always_inline)) {
      Wide const u0 = load_neighbours(x0 + j), u1 = load_neighbours(x1 + j), y0 = load_neighbours(s.y[0] + j);
      u0y0.part[part] += u0 * y0;
      u1y0.part[part] += u1 * y0;
      u1y1.part[part] += u1 * load_neighbours(s.y[1] + j);
    });
    Pack const along0 = u0y0.sum() * inverse_h0 * inverse_h0 * Scalar(0.5);
    Pack const w0u1 = u1y0.sum() * inverse_h0 - along0 * u0u1;
    Pack const along1 = (u1y1.sum() - 2 * u0u1 * w0u1) * inverse_h1 * inverse_h1 * Scalar(0.5);
    Wide const h0 = repeat(inverse_h0), h1 = repeat(inverse_h1), a0 = repeat(along0), a1 = repeat(along1);
    Wide const c0 = repeat(w0u1), c1 = repeat(u0u1);
    for_neighbours<Pack>(size, [&](Index j, int) __attribute__((always_inline)) {
      Wide const u0 = load_neighbours(x0 + j), u1 = load_neighbours(x1 + j);
      Wide const w0 = load_neighbours(s.y[0] + j) * h0 - a0 * u0;
      Wide const y1 = load_neighbours(s.y[1] + j) - u0 * c0 - w0 * c1;
      store_neighbours(s.v[0] + j, u0);
      store_neighbours(s.v[1] + j, u1);
      store_neighbours(s.w[0] + j, w0);
      store_neighbours(s.w[1] + j, y1 * h1 - a1 * u1);
    });
    for (Index j = size; j < padded(size); ++j) s.w[0][j] = s.w[1][j] = Pack{};
  };
  auto const updated = [&](Index row, Index column) __attribute__((always_inline)) {
    Pack element = triangle[element_offset(row, column)];
    for (int k = 0; k < 2; ++k) element -= s.v[k][row] * s.w[k][column] + s.w[k][row] * s.v[k][column];
    return element;
  };

  if (n > 1) {
    Scalar const scale = -1 / std::sqrt(static_cast<Scalar>(n));
    for (Index i = 0; i < n; ++i) x0[i] = splat<Pack>(scale);
    x0[n - 1] = splat<Pack>(scale - 1);
    multiply_by_mean(triangle, n, scale, s);
    reflect(n, splat<Pack>(1 / (1 - scale)), Pack{}, Pack{});
  }

  Index active = n;
  for (; active > 2; active -= 2) {
    Index const size = active - 2;  // of what is left by the rows size and size + 1
    d[size] = updated(size, size);
    d[size + 1] = updated(size + 1, size + 1);
    e[size] = updated(size + 1, size);
    Pack* row[2];
    Wide v[2][2], w[2][2];  // [of which update][of which row]
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      Index const at = size + 1 - i;
      row[i] = triangle + element_offset(at, 0);
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        v[k][i] = load_repeated(s.v[k] + at);
        w[k][i] = load_repeated(s.w[k] + at);
      }
    }
    for_neighbours<Pack>(size, [&](Index j, int) __attribute__((always_inline)) {
      Index const offset = j / kTile * kTile * kTile + j % kTile;
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        Wide element = load_neighbours(row[i] + offset);
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) {
          element -= v[k][i] * load_neighbours(s.w[k] + j);
          element -= w[k][i] * load_neighbours(s.v[k] + j);
        }
        store_neighbours(s.x[i] + j, element);
      }
    });
    for (Index j = size; j < padded(size); ++j) x0[j] = x1[j] = Pack{};

    // The last row keeps one element beside its diagonal and one beyond.
    Pack const head0 = x0[size - 1];
    x0[size - 1] = Pack{};
    Dot<Pack> square, cross;
    for_neighbours<Pack>(size, [&](Index j, int part) __attribute__((always_inline)) {
      Wide const own = load_neighbours(x0 + j);
      square.part[part] += own * own;
      cross.part[part] += own * load_neighbours(x1 + j);
    });
    Reflector<Pack> const first(head0, square.sum());
    f[size - 1] = first.beta;
    Pack const along = (cross.sum() * first.scale + first.last * x1[size - 1]) * first.inverse_h;
    Wide const scale0 = repeat(first.scale), along0 = repeat(along);
    for_neighbours<Pack>(size, [&](Index j, int) __attribute__((always_inline)) {
      Wide const u0 = load_neighbours(x0 + j) * scale0;
      store_neighbours(x0 + j, u0);
      store_neighbours(x1 + j, load_neighbours(x1 + j) - along0 * u0);
    });
    x0[size - 1] = first.last;
    e[size - 1] = x1[size - 1] - along * first.last;
    x1[size - 1] = Pack{};
    if (size == 1) break;  // nothing is left to reflect

    // The row before it, after the first reflector, keeps one element more.
    Pack const head1 = x1[size - 2];
    x1[size - 2] = Pack{};
    Dot<Pack> square1;
    for_neighbours<Pack>(size, [&](Index j, int part) __attribute__((always_inline)) {
      Wide const own = load_neighbours(x1 + j);
      square1.part[part] += own * own;
    });
    Reflector<Pack> const second(head1, square1.sum());
    f[size - 2] = second.beta;
    Wide const scale1 = repeat(second.scale);
    Dot<Pack> u0u1;
    for_neighbours<Pack>(size, [&](Index j, int part) __attribute__((always_inline)) {
      Wide const u1 = load_neighbours(x1 + j) * scale1;
      store_neighbours(x1 + j, u1);
      u0u1.part[part] += u1 * load_neighbours(x0 + j);
    });
    x1[size - 2] = second.last;
    update_and_multiply(triangle, size, s);
    reflect(size, first.inverse_h, second.inverse_h, u0u1.sum() + second.last * x0[size - 2]);
  }
  if (active == 2) {
    d[1] = updated(1, 1);
    e[0] = updated(1, 0);
  }
  d[0] = updated(0, 0);
  d[n - 1] += shift;
}

}  // namespace hrel::cpu::HREL_LEVEL
