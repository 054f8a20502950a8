// How a team of threads holds the sums of a square matrix in registers: thread (ty, tx) of kThreadRows x kThreadColumns
// owns rows r kThreadRows + ty and columns c kThreadColumns + tx, cyclically, so that the lower triangle is shared out
// evenly. The threads of one row are consecutive lanes of one warp.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/intrinsics.cuh"

namespace hrel::cuda {

template <int kThreadRows_, int kThreadColumns_, int kRows_, int kColumns_>
struct BlockShape {
  static constexpr int kThreadRows = kThreadRows_, kThreadColumns = kThreadColumns_;
  static constexpr int kRows = kRows_, kColumns = kColumns_;  // of one thread
  static constexpr int kSize = kThreadRows * kRows, kThreads = kThreadRows * kThreadColumns;
  static constexpr int kWarps = kThreads / kWarp;
  static_assert(kSize == kThreadColumns * kColumns && kThreads % kWarp == 0 && kWarp % kThreadColumns == 0);
  static_assert(kRows % 4 == 0 && kColumns % 4 == 0, "vectors are read four elements at a time");
  static_assert((kThreadRows & (kThreadRows - 1)) == 0 && (kThreadColumns & (kThreadColumns - 1)) == 0);

  // A vector lies in the order of the rows or of the columns, [i / 4][thread][i % 4]: each thread reads its own
  // elements as float4, without bank conflicts.
  static constexpr HREL_HD int row_slot(int i) {
    return i / kThreadRows / 4 * (kThreadRows * 4) + i % kThreadRows * 4 + i / kThreadRows % 4;
  }
  static constexpr HREL_HD int column_slot(int i) {
    return i / kThreadColumns / 4 * (kThreadColumns * 4) + i % kThreadColumns * 4 + i / kThreadColumns % 4;
  }
};

template <int kCount, int kGroup>
__device__ __forceinline__ void load_vector(float (&out)[kCount], float const* vector, int group) {
#pragma unroll
  for (int q = 0; q < kCount / 4; ++q) {
    float4 const four = *reinterpret_cast<float4 const*>(vector + (q * kGroup + group) * 4);
    out[q * 4] = four.x;
    out[q * 4 + 1] = four.y;
    out[q * 4 + 2] = four.z;
    out[q * 4 + 3] = four.w;
  }
}
template <class Shape>
__device__ __forceinline__ void load_rows(float (&out)[Shape::kRows], float const* vector, int ty) {
  load_vector<Shape::kRows, Shape::kThreadRows>(out, vector, ty);
}

template <class Real>
__device__ __forceinline__ Real warp_sum(Real value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// Element (row, column), column <= row, of a symmetric matrix kept as its lower triangle, row by row.
HREL_HD int packed_offset(int row, int column) { return row * (row + 1) / 2 + column; }

}  // namespace hrel::cuda
