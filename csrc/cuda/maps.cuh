// The activations as the kernels read them: one struct for every element type, so that no kernel is compiled per type.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/block_shape.cuh"
#include "numerics/problem.h"

namespace hrel::cuda {

enum class Element { kFloat32, kFloat16, kBFloat16, kFloat64 };

template <class Stored>
inline constexpr Element kElementOf = Element::kFloat32;
template <>
inline constexpr Element kElementOf<Half> = Element::kFloat16;
template <>
inline constexpr Element kElementOf<BFloat16> = Element::kBFloat16;
template <>
inline constexpr Element kElementOf<double> = Element::kFloat64;

// A value of sample i and filter f at position p lies at i sample_stride + f filter_stride + position_offset(p).
struct Maps {
  void const* data;
  Element element;
  Index num_samples, num_filters, num_positions;
  Index sample_stride, filter_stride;
  Index inner_size, inner_stride, outer_stride;  // positions are two-dimensional where the whole layer is one map

  HREL_HD Index position_offset(Index position) const {
    if (inner_size == num_positions) return position * inner_stride;
    return position / inner_size * outer_stride + position % inner_size * inner_stride;
  }
};

template <class Stored>
Maps maps_of_filters(ActivationView<Stored> const& acts) {
  return {acts.data,          kElementOf<Stored>, acts.num_samples,  acts.num_filters,    acts.num_features,
          acts.sample_stride, acts.filter_stride, acts.num_features, acts.feature_stride, 0};
}

// The output of the whole layer as the map of one filter.
template <class Stored>
Maps map_of_layer(ActivationView<Stored> const& acts) {
  Maps maps = maps_of_filters(acts);
  maps.num_filters = 1;
  maps.num_positions = acts.num_filters * acts.num_features;
  maps.outer_stride = acts.filter_stride;
  if (acts.filter_stride == acts.num_features * acts.feature_stride) maps.inner_size = maps.num_positions;
  return maps;
}

// Values as they lie in memory: under way while the ones before them are worked on. offset(i) < 0 stands for a 0.
template <int kCount, class Offset>
__device__ __forceinline__ void fetch_values(Maps const& maps, std::uint32_t (&bits)[kCount], Offset const& offset) {
  if (maps.element == Element::kFloat32) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      Index const place = offset(i);
      bits[i] = place < 0 ? 0 : static_cast<std::uint32_t const*>(maps.data)[place];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      Index const place = offset(i);
      bits[i] = place < 0 ? 0 : static_cast<std::uint16_t const*>(maps.data)[place];
    }
  }
}

__device__ __forceinline__ float value_of(std::uint32_t bits, Element element) {
  if (element == Element::kFloat32) return bits_to_float(bits);
  auto const half = static_cast<std::uint16_t>(bits);
  return element == Element::kFloat16 ? to_float(Half{half}) : to_float(BFloat16{half});
}

// Where the maps of `filter` begin, for the samples in their order.
template <class Shape>
__device__ __forceinline__ void write_sample_offsets(Maps const& maps, Index const* order, Index filter,
                                                     Index (&offsets)[Shape::kSize], int thread) {
  for_each_index<Shape>(thread, [&](int i) {
    offsets[i] = i < maps.num_samples ? order[i] * maps.sample_stride + filter * maps.filter_stride : 0;
  });
}

}  // namespace hrel::cuda
