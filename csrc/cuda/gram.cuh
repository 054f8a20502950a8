// Squared distances d2_ij = sum_p (x_ip - x_jp)^2 between the maps of one filter: positions are staged in shared memory
// and every thread sums a register tile. Differences, not products: nothing cancels, whatever the offset or an outlier.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"
#include "cuda/maps.cuh"
#include "cuda/tiles.cuh"

namespace hrel::cuda {

inline constexpr int kStage = 8;  // positions staged at once, one sector of memory of each sample

template <class Shape>
struct GramStage {
  static constexpr int kPitch = Shape::kSize + 4;  // writes of eight positions of four rows meet 32 different banks
  alignas(16) float rows[kStage][kPitch], columns[kStage][kPitch];
};

// Whether a thread's element (r, c) lies in a tile on or below the diagonal.
template <class Shape>
HREL_HD constexpr bool is_in_tiles(int r, int c) {
  static_assert(kTileSize % Shape::kThreadRows == 0 && kTileSize % Shape::kThreadColumns == 0);
  return c * Shape::kThreadColumns / kTileSize <= r * Shape::kThreadRows / kTileSize;
}

// Reads positions begin .. end - 1 of `filter`, samples in the given order, times `scale`, and calls
// store(offset, d2) for all elements of the tiles of kSize rows, of which those past the last sample mean nothing. Ends
// with all threads past their last use of the stage.
template <class Shape, class Store>
__device__ __forceinline__ void squared_distances(Maps const& maps, Index const* order, int filter, Index begin,
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
  int sample[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    int const row = row_of_thread + step_of(i);
    sample[i] = static_cast<int>(order[row < n ? row : 0]);
  }
  int const length = static_cast<int>(end - begin);  // positions are counted from `begin`

  float sums[Shape::kRows][Shape::kColumns];
#pragma unroll
  for (int r = 0; r < Shape::kRows; ++r) {
#pragma unroll
    for (int c = 0; c < Shape::kColumns; ++c) sums[r][c] = 0;
  }
#pragma unroll 1
  for (int first = 0; first < length; first += kStage) {
    // Not fetched ahead, which would take registers: there are other blocks to go on with.
    int const place = first + position < length ? first + position : length - 1;
    Index const offset = filter * maps.filter_stride + maps.position_offset(begin + place);
    std::uint32_t bits[kPerThread];
    fetch_values(maps, bits, [&](int i) { return sample[i] * maps.sample_stride + offset; });
    with_element(maps.element, [&](auto const& value_of_bits) {
      float const weight = first + position < length ? scale : 0;
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        float const value = value_of_bits(bits[i]) * weight;
        row_place[Shape::row_slot(step_of(i))] = value;
        column_place[Shape::column_slot(step_of(i))] = value;
      }
    });
    barrier<Shape::kThreads>();  // the stage is filled
    int const positions = length - first < kStage ? length - first : kStage;
    // Two positions an addition, which halves the rounding of a long sum; those past `end` are staged as 0.
#pragma unroll 1
    for (int p = 0; p < positions; p += 2) {
      float row[2][Shape::kRows];
#pragma unroll
      for (int q = 0; q < 2; ++q) load_rows<Shape>(row[q], stage.rows[p + q], ty);
#pragma unroll
      for (int quad = 0; quad < Shape::kColumns; quad += 4) {
        float column[2][4];
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          load_vector<4, Shape::kThreadColumns>(column[q], stage.columns[p + q] + quad * Shape::kThreadColumns, tx);
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
#pragma unroll
          for (int r = 0; r < Shape::kRows; ++r) {
            if (!is_in_tiles<Shape>(r, quad + c)) continue;
            float const first_difference = row[0][r] - column[0][c], second_difference = row[1][r] - column[1][c];
            sums[r][quad + c] += first_difference * first_difference + second_difference * second_difference;
          }
        }
      }
    }
    barrier<Shape::kThreads>();  // the stage is free
  }
  int const offset_of_thread = ty * kHalfColumns + tiled_column(tx);
#pragma unroll
  for (int r = 0; r < Shape::kRows; ++r) {
#pragma unroll
    for (int c = 0; c < Shape::kColumns; ++c) {
      if (!is_in_tiles<Shape>(r, c)) continue;
      store(tiled_offset(r * Shape::kThreadRows, c * Shape::kThreadColumns) + offset_of_thread, sums[r][c]);
    }
  }
}

}  // namespace hrel::cuda
