// Householder reduction in float64 of one symmetric matrix kept as its packed lower triangle in global memory, by one
// block of threads, to three diagonals, whose eigenvalues are wanted. Rows are eliminated from the last one, whose
// elements lie side by side. Per step, update and product share one pass: A <- A - v w' - w v', then y = A u.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"

namespace hrel::cuda {

inline constexpr int kPackedThreads = 256, kPackedWarps = kPackedThreads / kWarp;
inline constexpr int kPackedSize = 256;  // the largest matrix: one column for each thread
inline constexpr int kColumnsPerLane = kPackedSize / kWarp;

struct PackedVectors {
  double u[kPackedSize], v[kPackedSize], w[kPackedSize], y[kPackedSize];
  double column_part[kPackedWarps][kPackedSize];  // of y, from each warp's rows
  double tail_part[kPackedWarps], dot_part[kPackedWarps];
};

__device__ __forceinline__ double sum_of_parts(double const (&part)[kPackedWarps]) {
  double sum = 0;
#pragma unroll
  for (int q = 0; q < kPackedWarps; ++q) sum += part[q];
  return sum;
}

// The leading `size` rows: A -= v w' + w v', and y = A u but for the parts of the columns.
__device__ __forceinline__ void update_and_multiply(double* packed, int size, PackedVectors& s, int thread) {
  int const warp = thread / kWarp, lane = thread % kWarp;
  double u_column[kColumnsPerLane], v_column[kColumnsPerLane], w_column[kColumnsPerLane], sums[kColumnsPerLane];
#pragma unroll
  for (int q = 0; q < kColumnsPerLane; ++q) {
    int const column = q * kWarp + lane;
    bool const inside = column < size;
    u_column[q] = inside ? s.u[column] : 0;
    v_column[q] = inside ? s.v[column] : 0;
    w_column[q] = inside ? s.w[column] : 0;
    sums[q] = 0;
  }
#pragma unroll 1
  for (int row = warp; row < size; row += kPackedWarps) {
    double* const elements = packed + packed_offset(row, 0);
    double const u = s.u[row], v = s.v[row], w = s.w[row];
    double along = 0;
#pragma unroll
    for (int q = 0; q < kColumnsPerLane; ++q) {
      int const column = q * kWarp + lane;
      if (q * kWarp > row) break;
      if (column <= row) {
        double element = elements[column];
        element -= v * w_column[q];
        element -= w * v_column[q];
        elements[column] = element;
        along += element * u_column[q];
        if (column < row) sums[q] += element * u;
      }
    }
    along = warp_sum(along);
    if (lane == 0) s.y[row] = along;
  }
#pragma unroll
  for (int q = 0; q < kColumnsPerLane; ++q) s.column_part[warp][q * kWarp + lane] = sums[q];
}

// The tridiagonal form of A, from `packed` = A - (rank_one / n) 11', n = tri.size <= kPackedSize, which is overwritten.
// The rank-one part is kept out for the reason given in cuda/band_reduction.cuh. A barrier comes before `packed` is
// read, and one after the result is written.
__device__ __forceinline__ void tridiagonalise_packed(double* packed, TridiagonalView<double> const& tri,
                                                      double rank_one, PackedVectors& s, int thread) {
  constexpr double kNegligible = 1e-290;
  int const n = static_cast<int>(tri.size), warp = thread / kWarp, lane = thread % kWarp;
  double const head_of_ones = -1 / std::sqrt(static_cast<double>(n));
  double u = thread < n ? head_of_ones : 0.0;  // the reflector of the vector of ones to e_{n-1}
  if (thread == n - 1) u -= 1;
  double inverse_h = n > 1 ? 1 / (1 - head_of_ones) : 0.0;
  double v = 0, w = 0;
#pragma unroll 1
  for (int size = n;; --size) {
    // Here u is the reflector for the leading `size` rows; v, w are the update that they still await.
    s.u[thread] = u;
    s.v[thread] = v;
    s.w[thread] = w;
    barrier<kPackedThreads>();  // u, v, w are written
    update_and_multiply(packed, size, s, thread);
    barrier<kPackedThreads>();  // A and the parts of y are written
    double y = 0;
    if (thread < size) {
      y = s.y[thread];
#pragma unroll
      for (int q = 0; q < kPackedWarps; ++q) y += s.column_part[q][thread];
    }
    double const part = warp_sum(u * y);
    if (lane == 0) s.dot_part[warp] = part;
    barrier<kPackedThreads>();  // the parts of u'y are written
    double const along = sum_of_parts(s.dot_part) * inverse_h * inverse_h / 2;
    v = u;
    w = y * inverse_h - along * u;
    s.v[thread] = v;
    s.w[thread] = w;
    barrier<kPackedThreads>();  // v and w of this step are written

    // Row k of the leading matrix, updated: its last element is on the diagonal, the one before it beside.
    int const k = size - 1;
    double const v_k = s.v[k], w_k = s.w[k];
    double const row = thread <= k ? packed[packed_offset(k, thread)] - v_k * w - w_k * v : 0.0;
    if (thread == k) tri.diagonal[k] = k == n - 1 ? row + rank_one : row;
    if (thread == k - 1) s.y[0] = row;
    double const tail_part = warp_sum(thread < k - 1 ? row * row : 0.0);
    if (lane == 0) s.tail_part[warp] = tail_part;
    barrier<kPackedThreads>();  // the head of the row and the parts of its tail are written; or the whole result
    if (k == 0) return;
    double const tail = sum_of_parts(s.tail_part), head = s.y[0];
    bool const reduced = !(tail > kNegligible);
    double const norm = std::sqrt(tail + head * head), signed_norm = head > 0 ? -norm : norm;
    double const beta = reduced ? head : signed_norm, scale = reduced ? 0.0 : 1 / signed_norm;
    inverse_h = reduced ? 0.0 : 1 / (1 - head * scale);
    if (thread == k) tri.off_diagonal[k - 1] = beta;
    u = thread < k ? (thread == k - 1 ? head - beta : row) * scale : 0.0;
    if (thread >= k) v = w = 0;
  }
}

}  // namespace hrel::cuda
