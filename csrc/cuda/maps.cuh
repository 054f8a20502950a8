// The activations as the kernels read them: one struct for every element type, so that no kernel is compiled per type.
// SPDX-License-Identifier: MIT
#pragma once
#include <cstdlib>
#include <limits>

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
  bool quads;                                    // every fourth position begins an aligned read of four
  bool in_reach;                                 // positions of a map are less than 2^31 values apart, in one dimension

  HREL_HD Index position_offset(Index position) const {
    if (inner_size == num_positions) return position * inner_stride;
    return position / inner_size * outer_stride + position % inner_size * inner_stride;
  }
};

template <class Stored>
Maps maps_of_filters(ActivationView<Stored> const& acts) {
  bool const quads = acts.feature_stride == 1 && acts.num_features % 4 == 0 && acts.sample_stride % 4 == 0 &&
                     acts.filter_stride % 4 == 0 &&
                     reinterpret_cast<std::uintptr_t>(acts.data) % (4 * sizeof(Stored)) == 0;
  return {acts.data,
          kElementOf<Stored>,
          acts.num_samples,
          acts.num_filters,
          acts.num_features,
          acts.sample_stride,
          acts.filter_stride,
          acts.num_features,
          acts.feature_stride,
          0,
          quads,
          acts.num_features * std::abs(acts.feature_stride) <= std::numeric_limits<int>::max()};
}

// The output of the whole layer as the map of one filter.
template <class Stored>
Maps map_of_layer(ActivationView<Stored> const& acts) {
  Maps maps = maps_of_filters(acts);
  maps.num_filters = 1;
  maps.quads = maps.in_reach = false;
  maps.num_positions = acts.num_filters * acts.num_features;
  maps.outer_stride = acts.filter_stride;
  if (acts.filter_stride == acts.num_features * acts.feature_stride) maps.inner_size = maps.num_positions;
  return maps;
}

// Values as they lie in memory: under way while the ones before them are worked on.
template <int kCount, class Offset>
__device__ __forceinline__ void fetch_values(Maps const& maps, std::uint32_t (&bits)[kCount], Offset const& offset) {
  if (maps.element == Element::kFloat32) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) bits[i] = static_cast<std::uint32_t const*>(maps.data)[offset(i)];
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) bits[i] = static_cast<std::uint16_t const*>(maps.data)[offset(i)];
  }
}

// As fetch_values, of four positions from `first` on for each of kCount rows whose position 0 lies at row[i]; past the
// last one of `length` it is repeated. Where the maps allow it in one read, which leaves two halves in each word. The
// positions must be in reach.
template <int kCount>
__device__ __forceinline__ void fetch_quads(Maps const& maps, std::uint32_t (&bits)[kCount][4],
                                            Index const (&row)[kCount], int first, int length) {
  struct alignas(16) Floats {
    std::uint32_t bits[4];
  };
  struct alignas(8) Halves {
    std::uint32_t bits[2];
  };
  if (!maps.quads) {
    int offset[4];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      offset[q] = (first + q < length ? first + q : length - 1) * static_cast<int>(maps.inner_stride);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      fetch_values(maps, bits[i], [&](int q) { return row[i] + offset[q]; });
    }
    return;
  }
  int const offset = first < length ? first : length - 4;  // lengths are multiples of four
  if (maps.element == Element::kFloat32) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      Floats const four =
          *reinterpret_cast<Floats const*>(static_cast<std::uint32_t const*>(maps.data) + row[i] + offset);
#pragma unroll
      for (int q = 0; q < 4; ++q) bits[i][q] = four.bits[q];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      Halves const four =
          *reinterpret_cast<Halves const*>(static_cast<std::uint16_t const*>(maps.data) + row[i] + offset);
#pragma unroll
      for (int q = 0; q < 2; ++q) bits[i][q] = four.bits[q];
    }
  }
}

// Calls visit(value_of_bits) with what takes the bits of an element to its value: one test for many values.
template <class Visit>
__device__ __forceinline__ void with_element(Element element, Visit const& visit) {
  if (element == Element::kFloat32) {
    visit([](std::uint32_t bits) { return bits_to_float(bits); });
  } else if (element == Element::kFloat16) {
    visit([](std::uint32_t bits) { return to_float(Half{static_cast<std::uint16_t>(bits)}); });
  } else {
    visit([](std::uint32_t bits) { return to_float(BFloat16{static_cast<std::uint16_t>(bits)}); });
  }
}

// The same for what fetch_quads reads: value_of_quad(bits, q).
template <class Visit>
__device__ __forceinline__ void with_quads(Maps const& maps, Visit const& visit) {
  bool const packed = maps.quads && maps.element != Element::kFloat32;
  with_element(maps.element, [&](auto const& value_of_bits) {
    if (packed) {
      visit([&](std::uint32_t const(&bits)[4], int q) { return value_of_bits(bits[q / 2] >> q % 2 * 16); });
    } else {
      visit([&](std::uint32_t const(&bits)[4], int q) { return value_of_bits(bits[q]); });
    }
  });
}

}  // namespace hrel::cuda
