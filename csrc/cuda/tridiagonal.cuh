// Householder reduction of blocks on the diagonal of a symmetric matrix to three diagonals: a thread holds a row of its
// block in registers, and all blocks are reduced at once, so that a step takes no longer for ten of them than for one.
// With x = A[p:, k], p = k + 1, and B = A[p:, p:]:
//   u = x / beta - e_p, beta = -sign(x_p) |x|, |u|^2 = 2 h, h = 1 - x_p / beta, q = B u,
//   w = q / h - (u' q / 2 h^2) u,  B <- B - u w' - w u'.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/tiles.cuh"
#include "numerics/rational_trace.h"

namespace hrel::cuda {

inline constexpr int kLargestBlock = 32;  // rows; more would not fit into the registers of a thread

// A block: rows first .. first + size - 1, the number-th one of the matrix. (rank_one / size) 1 1' is kept out of it, see
// cuda/band_reduction.cuh, and returns as rank_one added to its first element.
struct DiagonalBlock {
  int number, first, size;
  float rank_one;
};

// Vectors of all blocks, in shared memory. Each begins at a multiple of four elements, at or after first + 3 number.
template <int kSize>
struct alignas(16) BlockVectors {
  float x[2][4 * kSize + 4], q[4 * kSize + 4];  // x takes turns
};

// By the team of kThreads threads, one a row; that of a thread without a row has size 0. A barrier comes before the matrix
// is read, another one after it was, and none after the result is written.
template <int kThreads>
__device__ __forceinline__ void tridiagonalise_blocks(float const* matrix, DiagonalBlock const& block,
                                                      TridiagonalView<float> const& tri, BlockVectors<kThreads>& v,
                                                      int thread) {
  constexpr int kQuads = kLargestBlock / 4;
  int const local = thread - block.first, size = block.size, base = (block.first + 3 * block.number + 3) / 4 * 4;
  for (int i = thread; i < 4 * kThreads + 4; i += kThreads) v.x[0][i] = v.x[1][i] = v.q[i] = 0;
  barrier<kThreads>();  // the vectors are cleared, and the matrix is written

  float row[kLargestBlock], x = 1;  // the row of the block from column p on; at first, the ones are taken to e_0
  int const own = size > 0 ? thread : 0, own_as_row = tiled_row(own), own_as_column = tiled_column(own);
#pragma unroll
  for (int j = 0; j < kLargestBlock; ++j) {
    int const column = j < size ? block.first + j : 0;
    row[j] = matrix[column <= own ? own_as_row + tiled_column(column) : tiled_row(column) + own_as_column];
  }

#pragma unroll 1
  for (int k = -1;; ++k) {
    int const p = k + 1, left = size - p;  // rows of this step
    bool const active = local >= p && left > 0;
    float* const all_x = v.x[p & 1] + base;
    float* const all_q = v.q + base;
    if (active) all_x[local - p] = x;
    if (local == k && left >= 0) {  // of this turn before, there were two more
      all_x[left] = 0;
      if (k > 0) all_x[left + 1] = 0;
    }
    if (!any_of_team<kThreads>(active)) return;  // a barrier: x is written

    float tail = 0, product = 0, head = 0;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      if (quad * 4 >= left) break;
      float4 const four = *reinterpret_cast<float4 const*>(all_x + quad * 4);
      if (quad == 0) head = four.x;
      tail += ((quad == 0 ? 0 : four.x * four.x) + four.y * four.y) + (four.z * four.z + four.w * four.w);
      product += (row[quad * 4] * four.x + row[quad * 4 + 1] * four.y) +
                 (row[quad * 4 + 2] * four.z + row[quad * 4 + 3] * four.w);
    }
    float const square = tail + head * head, inverse_norm = reciprocal_root(square);
    bool const reduced = !(tail > kNegligibleSquare);
    float const signed_inverse = head > 0 ? -inverse_norm : inverse_norm, minus_h = head * signed_inverse - 1;
    float const scale = reduced ? 0 : signed_inverse, inverse_h = reduced ? 0 : -reciprocal(minus_h);
    float const beta = reduced ? head : square * signed_inverse, first_u = reduced ? 0 : minus_h;
    float const q = reduced ? 0 : product * scale - row[0];
    if (active) all_q[local - p] = q;
    barrier<kThreads>();  // q is written

    float along = 0;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      if (quad * 4 >= left) break;
      float4 const of_x = *reinterpret_cast<float4 const*>(all_x + quad * 4);
      float4 const of_q = *reinterpret_cast<float4 const*>(all_q + quad * 4);
      float const first_x = quad == 0 ? first_u : of_x.x * scale;
      along += (first_x * of_q.x + of_x.y * scale * of_q.y) + scale * (of_x.z * of_q.z + of_x.w * of_q.w);
    }
    along *= 0.5f * inverse_h * inverse_h;
    float const own_u = local == p ? first_u : x * scale, own_w = q * inverse_h - along * own_u;
    float const minus_own = own_w - along * own_u;  // B - u (q/h - along u)' - w u' = B - (u / h) q' - (w - along u) u'
    float const own_q = own_u * inverse_h, own_x = minus_own * scale;
    x = row[0] - own_q * all_q[0] - minus_own * first_u;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      if (quad * 4 >= left) break;
      float4 const of_x = *reinterpret_cast<float4 const*>(all_x + quad * 4);
      float4 const of_q = *reinterpret_cast<float4 const*>(all_q + quad * 4);
      // Columns move up by one: the one that is reduced comes first.
      if (quad > 0) row[quad * 4 - 1] = row[quad * 4] - own_q * of_q.x - own_x * of_x.x;
      row[quad * 4] = row[quad * 4 + 1] - own_q * of_q.y - own_x * of_x.y;
      row[quad * 4 + 1] = row[quad * 4 + 2] - own_q * of_q.z - own_x * of_x.z;
      row[quad * 4 + 2] = row[quad * 4 + 3] - own_q * of_q.w - own_x * of_x.w;
    }
    if (active && local == p) {
      tri.diagonal[thread] = k < 0 ? x + block.rank_one : x;
      if (k >= 0) tri.off_diagonal[thread - 1] = beta;
      if (left == 1 && thread + 1 < tri.size) tri.off_diagonal[thread] = 0;
    }
  }
}

}  // namespace hrel::cuda
