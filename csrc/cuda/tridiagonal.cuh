// Householder reduction of one symmetric matrix held in the registers of a team, two barriers a step. With x = A[p:,
// k], p = k + 1, y = A x and z = A[:, p]:
//   u = x / beta - e_p, beta = -sign(x_p) |x|, |u|^2 = 2 h, h = 1 - x_p / beta, A u = y / beta - z,
//   w = A u / h - (u' A u / 2 h^2) u,  A <- A - u w' - w u',  next x = z - u w_p - w u_p.
// y is the product with the raw column, so that the norm needs no pass of its own, and the update of one step and the
// product of the next share one pass over the registers. SPDX-License-Identifier: MIT
#pragma once
#include "cuda/tiles.cuh"

namespace hrel::cuda {

template <class Shape>
struct alignas(16) HouseholderVectors {
  float u_row[Shape::kSize], w_row[Shape::kSize], x_row[Shape::kSize];
  float u_column[Shape::kSize], w_column[Shape::kSize], x_column[Shape::kSize];
  float y[Shape::kSize], z[2][Shape::kSize], x[Shape::kSize];  // in natural order; z alternates between steps
  float xAx[Shape::kThreadRows], tail[Shape::kSize / kWarp];   // partial sums
};

template <class Shape>
struct RegisterTridiagonal {
  static constexpr int kSize = Shape::kSize, kRows = Shape::kRows, kColumns = Shape::kColumns;
  static constexpr int kThreadRows = Shape::kThreadRows, kThreadColumns = Shape::kThreadColumns;
  using Tile = float[kRows][kColumns];
  using Vectors = HouseholderVectors<Shape>;

  // Row and column i of the tile are row and column i + shift of a tiled matrix, and 0 before `first`.
  static __device__ __forceinline__ void load(float const* matrix, int shift, int first, Tile& a, int thread) {
    int const ty = thread / kThreadColumns + shift, tx = thread % kThreadColumns + shift;
    // An element above the diagonal is that below it: each index as a row and as a column.
    int row_as[kRows][2], column_as[kColumns][2];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      int const row = r * kThreadRows + ty < first ? first : r * kThreadRows + ty;
      row_as[r][0] = tiled_row(row);
      row_as[r][1] = tiled_column(row);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      int const column = c * kThreadColumns + tx < first ? first : c * kThreadColumns + tx;
      column_as[c][0] = tiled_row(column);
      column_as[c][1] = tiled_column(column);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        int const row = r * kThreadRows + ty, column = c * kThreadColumns + tx;
        int const place = column <= row ? row_as[r][0] + column_as[c][1] : row_as[r][1] + column_as[c][0];
        float const element = matrix[place];
        a[r][c] = row >= first && column >= first ? element : 0;
      }
    }
  }

  // Sums kCount values over 2 kHalf lanes. Each exchange halves the number of values per lane, so 15 shuffles do for 16
  // values and 16 lanes. On return values[0 ..] belongs to the value numbers that start at `index`.
  template <int kCount, int kHalf>
  static __device__ __forceinline__ void halving_sum(float (&values)[kCount], int lane, int& index) {
    if constexpr (kHalf >= 1) {
      if constexpr (kCount > 1) {
        constexpr int kKept = kCount / 2;
        bool const upper = (lane & kHalf) != 0;
        float half[kKept];
#pragma unroll
        for (int i = 0; i < kKept; ++i) {
          float const sent = upper ? values[i] : values[i + kKept], kept = upper ? values[i + kKept] : values[i];
          half[i] = kept + __shfl_xor_sync(kAllLanes, sent, kHalf);
        }
        index = index * 2 + (upper ? 1 : 0);
        halving_sum<kKept, kHalf / 2>(half, lane, index);
#pragma unroll
        for (int i = 0; i < kKept; ++i) values[i] = half[i];
      } else {
        values[0] += __shfl_xor_sync(kAllLanes, values[0], kHalf);
        halving_sum<1, kHalf / 2>(values, lane, index);
      }
    }
  }

  // From the thread's part of y = A x and x'y: writes y, x'Ax and |x|^2 without x_p to shared memory.
  static __device__ __forceinline__ void reduce(Vectors& v, float (&y)[kRows], float xy, int p, int thread) {
    int const ty = thread / kThreadColumns, tx = thread % kThreadColumns;
    for_each_index<Shape>(thread, [&](int i) {
      float const x = v.x_row[Shape::row_slot(i)];
      v.x[i] = x;
      float square = i == p ? 0 : x * x;
#pragma unroll
      for (int offset = kWarp / 2; offset > 0; offset /= 2) square += __shfl_xor_sync(kAllLanes, square, offset);
      if (thread % kWarp == 0) v.tail[i / kWarp] = square;
    });
    int index = 0;
    halving_sum<kRows, kThreadColumns / 2>(y, tx, index);
#pragma unroll
    for (int offset = kThreadColumns / 2; offset > 0; offset /= 2) xy += __shfl_xor_sync(kAllLanes, xy, offset);
    constexpr int kLeft = kRows > kThreadColumns ? kRows / kThreadColumns : 1;
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      if (kRows >= kThreadColumns || (tx & (kThreadColumns / kRows - 1)) == 0) {
        v.y[(index * kLeft + i) * kThreadRows + ty] = y[i];
      }
    }
    if (tx == 0) v.xAx[ty] = xy;
  }

  // Before the first step: x = ones on the rows of the matrix, y = A x, z = column `pad`.
  static __device__ __forceinline__ void start(Tile const& a, Vectors& v, int pad, int thread) {
    int const ty = thread / kThreadColumns, tx = thread % kThreadColumns;
    for_each_index<Shape>(thread, [&](int i) {
      float const one = i >= pad ? 1 : 0;
      v.x_row[Shape::row_slot(i)] = one;
      v.x_column[Shape::column_slot(i)] = one;
    });
    barrier<Shape::kThreads>();  // x is written
    // Column `pad` as a product with a unit vector: an array indexed at run time would leave the registers.
    float x_row[kRows], x_column[kColumns], unit[kColumns], y[kRows], xy = 0;
    load_columns<Shape>(x_column, v.x_column, tx);
    load_rows<Shape>(x_row, v.x_row, ty);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) unit[c] = c == pad / kThreadColumns ? 1 : 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float sum = 0, z = 0;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        sum += a[r][c] * x_column[c];
        z += a[r][c] * unit[c];
      }
      y[r] = sum;
      xy += sum * x_row[r];
      if (tx == pad % kThreadColumns) v.z[(pad - 1) & 1][r * kThreadRows + ty] = z;
    }
    reduce(v, y, xy, pad, thread);
    barrier<Shape::kThreads>();  // the product is written
  }

  // Steps k whose column lies in register column kColumn, then those of the following ones: the recursion makes every
  // register index a constant. The first step is k = pad - 1, whose reflector takes the vector of ones to e_pad.
  template <int kColumn>
  static __device__ __forceinline__ void steps(Tile& a, Vectors& v, TridiagonalView<float> const& tri, float rank_one,
                                               int pad, int thread) {
    int const ty = thread / kThreadColumns, tx = thread % kThreadColumns;
    constexpr int kFirstRow = kColumn * kThreadColumns / kThreadRows;  // register rows above it are finished
    int const first = pad - 1 - kColumn * kThreadColumns, lowest = kColumn == 0 ? -1 : 0;
#pragma unroll 1
    for (int step = first > lowest ? first : lowest; step < kThreadColumns; ++step) {
      int const k = kColumn * kThreadColumns + step, p = k + 1, now = k & 1;
      if (p >= kSize) return;

      // One thread per element. Every thread repeats the scalar part instead of waiting for one that computes it.
      for_each_index<Shape>(thread, [&](int i) {
        float xAx = 0, tail = 0;
#pragma unroll
        for (int q = 0; q < kThreadRows; q += 4) {
          float4 const four = *reinterpret_cast<float4 const*>(v.xAx + q);
          xAx += (four.x + four.y) + (four.z + four.w);
        }
#pragma unroll
        for (int q = 0; q < kSize / kWarp; ++q) tail += v.tail[q];
        float const head = v.x[p], y_p = v.y[p], a_pp = v.z[now][p];
        bool const reduced = !(tail > kNegligibleSquare);
        float const square = tail + head * head, inverse_norm = rsqrtf(square), norm = square * inverse_norm;
        float const scale = reduced ? 0 : head > 0 ? -inverse_norm : inverse_norm;
        float const beta = reduced ? head : head > 0 ? -norm : norm;
        float const inverse_h = reduced ? 0 : __fdividef(1.0f, 1 - head * scale);
        float const uAu = xAx * scale * scale - 2 * scale * y_p + a_pp;
        float const along = 0.5f * inverse_h * inverse_h * uAu;
        float const u_p = reduced ? 0 : head * scale - 1;
        float const w_p = reduced ? 0 : inverse_h * (y_p * scale - a_pp) - along * u_p;
        float const z = v.z[now][i];
        float u = v.x[i] * scale - (i == p ? 1.0f : 0.0f);
        float w = inverse_h * (v.y[i] * scale - z) - along * u;
        if (reduced || i <= k) u = w = 0;
        float const next = z - u * w_p - w * u_p;  // column p after the update
        float const x = i > p ? next : 0;
        v.u_row[Shape::row_slot(i)] = u;
        v.w_row[Shape::row_slot(i)] = w;
        v.x_row[Shape::row_slot(i)] = x;
        v.u_column[Shape::column_slot(i)] = u;
        v.w_column[Shape::column_slot(i)] = w;
        v.x_column[Shape::column_slot(i)] = x;
        if (i == p) tri.diagonal[p - pad] = p == pad ? next + rank_one : next;
        if (i == k && k >= pad) tri.off_diagonal[k - pad] = beta;
      });
      barrier<Shape::kThreads>();  // the vectors are written

      // A -= u w' + w u' and y = A x in one pass over the registers.
      float u_column[kColumns], w_column[kColumns], x_column[kColumns], u_row[kRows], w_row[kRows], x_row[kRows];
      float y[kRows], xy = 0;
      load_columns<Shape>(u_column, v.u_column, tx);
      load_columns<Shape>(w_column, v.w_column, tx);
      load_columns<Shape>(x_column, v.x_column, tx);
      load_rows<Shape>(u_row, v.u_row, ty);
      load_rows<Shape>(w_row, v.w_row, ty);
      load_rows<Shape>(x_row, v.x_row, ty);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        y[r] = 0;
        if (r < kFirstRow) continue;
        float sum = 0;
#pragma unroll
        for (int c = kColumn; c < kColumns; ++c) {
          float element = a[r][c];
          element -= u_row[r] * w_column[c];
          element -= w_row[r] * u_column[c];
          a[r][c] = element;
          sum += element * x_column[c];
        }
        y[r] = sum;
        xy += x_row[r] * sum;
      }
      reduce(v, y, xy, k + 2, thread);
      int const next_column = k + 2;
      if (tx == next_column % kThreadColumns) {
#pragma unroll
        for (int r = kFirstRow; r < kRows; ++r) {
          float const here = a[r][kColumn], right = a[r][kColumn + 1 < kColumns ? kColumn + 1 : kColumn];
          v.z[now ^ 1][r * kThreadRows + ty] = next_column / kThreadColumns == kColumn ? here : right;
        }
      }
      barrier<Shape::kThreads>();  // the product is written
    }
    if constexpr (kColumn + 1 < kColumns) steps<kColumn + 1>(a, v, tri, rank_one, pad, thread);
  }

  // The tridiagonal form of A, given A - (rank_one / n) 11' as the rows and columns first .. first + n - 1 of a tiled
  // matrix, n = tri.size. Logical rows 0 .. pad - 1 of the tile are padding, whose steps are never taken. The rank-one
  // part is kept out because it may be all there is (a dead filter): its rounding would hide the rest. It returns as
  // `rank_one` added to the one element of the diagonal to which the first reflector takes the vector of ones.
  static __device__ __forceinline__ void run(float const* matrix, int first, TridiagonalView<float> const& tri,
                                             float rank_one, Vectors& v, int thread) {
    int const pad = kSize - static_cast<int>(tri.size);
    Tile a;
    load(matrix, first - pad, first, a, thread);
    start(a, v, pad, thread);
    steps<0>(a, v, tri, rank_one, pad, thread);
  }
};

}  // namespace hrel::cuda
