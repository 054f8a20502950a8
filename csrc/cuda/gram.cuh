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
  Index sample_offset[Shape::kSize];
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
  write_sample_offsets<Shape>(maps, order, filter, stage.sample_offset, thread);

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
  std::uint32_t next[kPerThread];  // the stage after the one in shared memory
  auto const fetch = [&](Index first) {
    bool const inside = first + position < end;
    Index const offset = inside ? maps.position_offset(first + position) : 0;
    fetch_values(maps, next, [&](int i) -> Index {
      int const row = row_of_thread + step_of(i);
      return inside && row < n ? stage.sample_offset[row] + offset : -1;
    });
  };

  float sums[Shape::kRows][Shape::kColumns];
#pragma unroll
  for (int r = 0; r < Shape::kRows; ++r) {
#pragma unroll
    for (int c = 0; c < Shape::kColumns; ++c) sums[r][c] = 0;
  }
  barrier<Shape::kThreads>();  // the offsets are written
  fetch(begin);
#pragma unroll 1
  for (Index first = begin; first < end; first += kStage) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      float const value = value_of(next[i], maps.element) * scale;
      row_place[Shape::row_slot(step_of(i))] = value;
      column_place[Shape::column_slot(step_of(i))] = value;
    }
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
