// Squared distances d2_ij = sum_p (x_ip - x_jp)^2 between the maps of one filter: positions are staged in shared memory
// and every thread sums a register tile. Differences, not products: nothing cancels, whatever the offset or an outlier.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"
#include "cuda/maps.cuh"

namespace hrel::cuda {

inline constexpr int kStage = 8;  // positions staged at once, one sector of memory of each sample

template <class Shape>
struct GramStage {
  static constexpr int kPitch = Shape::kSize + 4;  // writes of eight positions of four rows meet 32 different banks
  alignas(16) float rows[kStage][kPitch], columns[kStage][kPitch];
};

// Reads positions begin .. end - 1 of `filter`, samples in the given order, times `scale`, and calls
// store(row, column, d2) once for every column <= row < N. Ends with all threads past their last use of the stage.
template <class Shape, class Store>
__device__ __forceinline__ void squared_distances(Maps const& maps, Index const* order, Index filter, Index begin,
                                                  Index end, float scale, GramStage<Shape>& stage, int thread,
                                                  Store const& store) {
  constexpr int kPerThread = kStage * Shape::kSize / Shape::kThreads;
  int const n = static_cast<int>(maps.num_samples);
  int const ty = thread / Shape::kThreadColumns, tx = thread % Shape::kThreadColumns;

  // Eight positions of four rows kThreadRows apart for each warp: whole sectors of memory, and no bank conflicts. The
  // row is the sum of a part of the thread and of a constant that have no bit in common, and so are its slots.
  static_assert(kStage == 8);
  constexpr int kStep = Shape::kThreads / kStage / 4;
  static_assert(Shape::kThreadRows % kStep == 0);
  int const position = thread % kStage, group = thread / kStage;
  int const row_of_thread = group / 4 + group % 4 * Shape::kThreadRows;
  auto const step_of = [](int i) {
    return i * kStep / Shape::kThreadRows * (4 * Shape::kThreadRows) + i * kStep % Shape::kThreadRows;
  };
  float* const row_place = &stage.rows[position][Shape::row_slot(row_of_thread)];
  float* const column_place = &stage.columns[position][Shape::column_slot(row_of_thread)];
  // Rows past the last sample repeat the first one: their distances are not stored.
  Index row_offset[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    int const row = row_of_thread + step_of(i);
    row_offset[i] = order[row < n ? row : 0] * maps.sample_stride + filter * maps.filter_stride;
  }
  std::uint32_t next[kPerThread];  // the stage after the one in shared memory
  auto const fetch = [&](Index first) {
    Index const place = first + position, offset = maps.position_offset(place < end ? place : end - 1);
    fetch_values(maps, next, [&](int i) { return row_offset[i] + offset; });
  };

  float sums[Shape::kRows][Shape::kColumns];
#pragma unroll
  for (int r = 0; r < Shape::kRows; ++r) {
#pragma unroll
    for (int c = 0; c < Shape::kColumns; ++c) sums[r][c] = 0;
  }
  fetch(begin);
#pragma unroll 1
  for (Index first = begin; first < end; first += kStage) {
    with_element(maps.element, [&](auto const& value_of_bits) {
      float const weight = first + position < end ? scale : 0;
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        float const value = value_of_bits(next[i]) * weight;
        row_place[Shape::row_slot(step_of(i))] = value;
        column_place[Shape::column_slot(step_of(i))] = value;
      }
    });
    barrier<Shape::kThreads>();  // the stage is filled
    fetch(first + kStage);
    int const positions = static_cast<int>(end - first < kStage ? end - first : kStage);
    // Two positions an addition, which halves the rounding of a long sum; those past `end` are staged as 0.
#pragma unroll 1
    for (int p = 0; p < positions; p += 2) {
      float row[2][Shape::kRows], column[2][Shape::kColumns];
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        load_rows<Shape>(row[q], stage.rows[p + q], ty);
        load_columns<Shape>(column[q], stage.columns[p + q], tx);
      }
#pragma unroll
      for (int r = 0; r < Shape::kRows; ++r) {
#pragma unroll
        for (int c = 0; c < Shape::kColumns; ++c) {
          if (c * Shape::kThreadColumns > r * Shape::kThreadRows + Shape::kThreadRows - 1) continue;  // upper triangle
          float const first_difference = row[0][r] - column[0][c], second_difference = row[1][r] - column[1][c];
          sums[r][c] += first_difference * first_difference + second_difference * second_difference;
        }
      }
    }
    barrier<Shape::kThreads>();  // the stage is free
  }
#pragma unroll
  for (int r = 0; r < Shape::kRows; ++r) {
#pragma unroll
    for (int c = 0; c < Shape::kColumns; ++c) {
      int const row = r * Shape::kThreadRows + ty, column = c * Shape::kThreadColumns + tx;
      if (c * Shape::kThreadColumns > r * Shape::kThreadRows + Shape::kThreadRows - 1) continue;
      if (column <= row && row < n) store(row, column, sums[r][c]);
    }
  }
}

}  // namespace hrel::cuda
