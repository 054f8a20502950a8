// Alignment of Gaussian kernels with the label kernel L for many widths, from one pass over the distances:
//   2 log2(<K, L> / (|K| |L|)),  K_ij = exp(-d2_ij / sigma^2),  sigma = multiple * mean distance.
// One block has the distances of one row (a filter, or the layer) in shared memory and some of the widths.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/distances.cuh"
#include "cuda/entropies.cuh"

namespace hrel::cuda {

struct AlignmentArguments {
  Index num_samples;
  LabelView<float> labels;
  float const* multiples;  // [M]
  Index num_widths;
  float const* slots;  // distances, see cuda/distances.cuh
  Index splits;
  Index first_row;       // of this launch
  float* mean_distance;  // [R]
  float* alignment;      // [R, M]
};

inline constexpr int kAlignmentThreads = 256;

template <int kThreads>
struct AlignmentBlock {
  static constexpr int kWarps = kThreads / kWarp;
  int class_start[kLargestSize];  // of the class of each sample, in the order of the samples
  float parts[3][kWarps];
  float width_parts[kWarps][2 * kWidthsAtOnce];
};
static_assert(sizeof(AlignmentBlock<kAlignmentThreads>) <= kSharedBytesBesideMatrix);

template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1) alignment_kernel(AlignmentArguments const args) {
  AlignmentBlock<kThreads>& s = *shared_storage<AlignmentBlock<kThreads>>();
  float* const distances = reinterpret_cast<float*>(&s + 1);  // packed, of the size of the problem
  int const thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  int const n = static_cast<int>(args.num_samples);
  Index const row_of_launch = blockIdx.x, result = args.first_row + row_of_launch;

  int first, size;
  if (thread < n && args.labels.gram == nullptr && class_block(args.labels, thread, n, first, size)) {
    for (int i = first; i < first + size; ++i) s.class_start[i] = first;
  }
  barrier<kThreads>();  // the classes are written
  auto const weight = [&](int row, int column) -> float {
    if (args.labels.gram != nullptr) return args.labels.gram[static_cast<Index>(row) * n + column];
    return column >= s.class_start[row] ? 1 : 0;
  };

  float sum = 0, label_square = 0;
  Packed::for_each<kThreads>(n, thread, [&](int offset, int row, int column) {
    float const copies = row == column ? 1 : 2, l = weight(row, column);
    float d2[1];
    distances_of_slots(args.slots, args.splits, n, row_of_launch, {tiled_offset(row, column)}, d2);
    distances[offset] = d2[0];
    sum += copies * std::sqrt(d2[0]);
    label_square += copies * l * l;
  });
  sum = team_sum<kThreads>(sum, s.parts[0], thread);
  label_square = team_sum<kThreads>(label_square, s.parts[1], thread);
  float const mean = sum / (static_cast<float>(n) * static_cast<float>(n));
  if (thread == 0 && blockIdx.y == 0) args.mean_distance[result] = mean;

#pragma unroll 1
  for (Index group = static_cast<Index>(blockIdx.y) * kWidthsAtOnce; group < args.num_widths;
       group += static_cast<Index>(gridDim.y) * kWidthsAtOnce) {
    float inverse[kWidthsAtOnce], product[kWidthsAtOnce], square[kWidthsAtOnce];
#pragma unroll
    for (int m = 0; m < kWidthsAtOnce; ++m) {
      // Where all maps are equal every width gives the same kernel, and 0 gives it without dividing by 0.
      float const width = group + m < args.num_widths ? args.multiples[group + m] * mean : 0;
      inverse[m] = width > 0 ? 1 / width : 0;
      product[m] = square[m] = 0;
    }
    Packed::for_each<kThreads>(n, thread, [&](int offset, int row, int column) {
      float const copies = row == column ? 1 : 2, labelled = copies * weight(row, column), d2 = distances[offset];
#pragma unroll
      for (int m = 0; m < kWidthsAtOnce; ++m) {
        float const k = fast_exp_of_minus(d2 * inverse[m] * inverse[m]);
        square[m] += copies * k * k;
        product[m] += labelled * k;
      }
    });
#pragma unroll
    for (int m = 0; m < kWidthsAtOnce; ++m) {
      float const p = warp_sum(product[m]), q = warp_sum(square[m]);
      if (lane == 0) {
        s.width_parts[warp][m] = p;
        s.width_parts[warp][kWidthsAtOnce + m] = q;
      }
    }
    barrier<kThreads>();  // the parts of the warps are written
    if (thread < kWidthsAtOnce && group + thread < args.num_widths) {
      float p = 0, q = 0;
      for (int k = 0; k < AlignmentBlock<kThreads>::kWarps; ++k) {
        p += s.width_parts[k][thread];
        q += s.width_parts[k][kWidthsAtOnce + thread];
      }
      double const norms = std::sqrt(static_cast<double>(q) * static_cast<double>(label_square));
      args.alignment[result * args.num_widths + group + thread] = static_cast<float>(2 * std::log2(p / norms));
    }
    barrier<kThreads>();  // the parts are free
  }
}

}  // namespace hrel::cuda
