// Householder reduction of blocks on the diagonal of a symmetric matrix to three diagonals: a thread holds a row of its
// block in registers, and all blocks are reduced at once, so that a step takes no longer for ten of them than for one.
// With x = A[p:, k], p = k + 1, and B = A[p:, p:]:
//   u = x / beta - e_p, beta = -sign(x_p) |x|, |u|^2 = 2 h, h = 1 - x_p / beta, q = B u,
//   w = q / h - (u' q / 2 h^2) u,  B <- B - u w' - w u'.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/reflector.cuh"
#include "cuda/tiles.cuh"

namespace hrel::cuda {

inline constexpr int kLargestBlock = 32;  // rows; more would not fit into the registers of a thread

// A block: rows first .. first + size - 1, the number-th one of the matrix. (rank_one / size) 1 1' is kept out of it,
// see cuda/band_reduction.cuh, and returns as rank_one added to its first element.
struct DiagonalBlock {
  int number, first, size;
  float rank_one;
};

// Vectors of all blocks, in shared memory. Each begins at a multiple of four elements, at or after first + 3 number.
template <int kSize>
struct alignas(16) BlockVectors {
  static constexpr int kElements = 4 * kSize + 4 + 32;  // of which the last block reads a whole chunk
  float x[2][kElements], q[kElements];                  // x takes turns
};

inline constexpr int kChunk = 16;  // columns that are worked on side by side

__device__ __forceinline__ void read_chunk(float const* place, float (&values)[kChunk]) {
#pragma unroll
  for (int j = 0; j < kChunk; j += 4) {
    float4 const four = *reinterpret_cast<float4 const*>(place + j);
    values[j] = four.x, values[j + 1] = four.y, values[j + 2] = four.z, values[j + 3] = four.w;
  }
}

// By the team of kThreads threads, one a row; that of a thread without a row has size 0. A barrier comes before the
// matrix is read, and one after the result is written.
template <int kThreads>
__device__ __forceinline__ void tridiagonalise_blocks(float const* matrix, DiagonalBlock const& block,
                                                      TridiagonalView<float> const& tri, BlockVectors<kThreads>& v,
                                                      int thread) {
  int const local = thread - block.first, size = block.size, base = (block.first + 3 * block.number + 3) / 4 * 4;
  for (int i = thread; i < BlockVectors<kThreads>::kElements; i += kThreads) v.x[0][i] = v.x[1][i] = v.q[i] = 0;
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

    // Calls visit(first, x) for the columns in chunks, from number `first` of those left on; x is 0 past them.
    auto const for_each_chunk = [&](auto const& visit) {
#pragma unroll
      for (int chunk = 0; chunk < kLargestBlock; chunk += kChunk) {
        if (chunk > 0 && chunk >= left) break;
        float of_x[kChunk];
        read_chunk(all_x + chunk, of_x);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) of_x[j] = chunk + j / 4 * 4 < left ? of_x[j] : 0;  // cleared within four
        visit(chunk, of_x);
      }
    };
    float tail = 0, product = 0;
    for_each_chunk([&](int chunk, float const(&of_x)[kChunk]) {
#pragma unroll
      for (int j = 0; j < kChunk; j += 4) {
        float const first_square = chunk + j == 0 ? 0 : of_x[j] * of_x[j];
        tail += (first_square + of_x[j + 1] * of_x[j + 1]) + (of_x[j + 2] * of_x[j + 2] + of_x[j + 3] * of_x[j + 3]);
        product += (row[chunk + j] * of_x[j] + row[chunk + j + 1] * of_x[j + 1]) +
                   (row[chunk + j + 2] * of_x[j + 2] + row[chunk + j + 3] * of_x[j + 3]);
      }
    });
    Reflector const reflector(all_x[0], tail);
    float const scale = reflector.scale, inverse_h = reflector.inverse_h, first_u = reflector.first;
    float const q = reflector.reduced ? 0 : product * scale - row[0];
    if (active) all_q[local - p] = q;
    barrier<kThreads>();  // q is written

    // u' q = scale x' q - q_p.
    float first_q = all_q[0], along = 0;
    for_each_chunk([&](int chunk, float const(&of_x)[kChunk]) {
      float of_q[kChunk];
      read_chunk(all_q + chunk, of_q);
#pragma unroll
      for (int j = 0; j < kChunk; j += 4) {
        along +=
            (of_x[j] * of_q[j] + of_x[j + 1] * of_q[j + 1]) + (of_x[j + 2] * of_q[j + 2] + of_x[j + 3] * of_q[j + 3]);
      }
    });
    along = (scale * along - (reflector.reduced ? 0 : first_q)) * (0.5f * inverse_h * inverse_h);
    float const own_u = local == p ? first_u : x * scale, own_w = q * inverse_h - along * own_u;
    // B - u (q / h - along u)' - w u' = B - (u / h) q' - (w - along u) u'. Columns move up by one: the one that is
    // reduced comes first.
    float const own_q = own_u * inverse_h, own_along = own_w - along * own_u, own_x = own_along * scale;
    x = row[0] - own_q * first_q - own_along * first_u;
    for_each_chunk([&](int chunk, float const(&of_x)[kChunk]) {
      float of_q[kChunk];
      read_chunk(all_q + chunk, of_q);
#pragma unroll
      for (int j = chunk == 0 ? 1 : 0; j < kChunk; ++j) {
        row[chunk + j - 1] = row[chunk + j] - own_q * of_q[j] - own_x * of_x[j];
      }
    });
    if (active && local == p) {
      tri.diagonal[thread] = k < 0 ? x + block.rank_one : x;
      if (k >= 0) tri.off_diagonal[thread - 1] = reflector.beta;
      if (left == 1 && thread + 1 < tri.size) tri.off_diagonal[thread] = 0;
    }
  }
}

}  // namespace hrel::cuda
