// What C++ cannot express: shared storage, barriers, conversions, the fast exponential, the tensor core. This file
// alone tells nvcc from the emulator of the tests, which compiles the kernels as plain C++ and is included before them.
// SPDX-License-Identifier: MIT
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "numerics/config.h"
#include "numerics/views.h"
#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include <source_location>
#endif

namespace hrel::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr std::uint32_t kNaN = 0x7fc00000u;         // as the bits of a float
inline constexpr std::uint32_t kTensorBits = 0xffffe000u;  // of a float, those that the tensor core reads

#if defined(__CUDACC__)

// The shared memory of the block, whose size the launch gives.
template <class T>
__device__ __forceinline__ T* shared_storage() {
  extern __shared__ __align__(16) unsigned char hrel_shared_storage[];
  return reinterpret_cast<T*>(hrel_shared_storage);
}

// Of a team of kThreads threads: one warp, or the whole block.
template <int kThreads>
__device__ __forceinline__ void barrier() {
  if constexpr (kThreads > kWarp) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

__device__ __forceinline__ float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

__device__ __forceinline__ float bits_to_float(std::uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ std::uint32_t float_to_bits(float value) { return __float_as_uint(value); }

// exp(-t), t >= 0, to about 2 units of the last place.
__device__ __forceinline__ float fast_exp_of_minus(float t) { return __expf(-t); }

// c += a b over a warp, a 16 x 8, b 8 x 8, of whose fractions 10 bits are read. With g = lane / 4 and t = lane % 4: a =
// {(g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)}, b = {(t, g), (t + 4, g)}, c = {(g, 2t), (g, 2t + 1), (g + 8, 2t),
// (g + 8, 2t + 1)}.
__device__ __forceinline__ void multiply_tf32(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t const (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Whether `condition` holds for any thread of the team; also a barrier.
template <int kThreads>
__device__ __forceinline__ bool any_of_team(bool condition) {
  if constexpr (kThreads > kWarp) {
    return __syncthreads_or(condition) != 0;
  } else {
    bool const any = __any_sync(kAllLanes, condition) != 0;
    __syncwarp();
    return any;
  }
}

#else

template <class T>
T* shared_storage() {
  return reinterpret_cast<T*>(emulator::shared_memory());
}

template <int kThreads>
void barrier(std::source_location where = std::source_location::current()) {
  if constexpr (kThreads > kWarp) {
    emulator::block_barrier(where);
  } else {
    emulator::warp_barrier(where);
  }
}

inline float bits_to_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline std::uint32_t float_to_bits(float value) { return std::bit_cast<std::uint32_t>(value); }

inline float to_float(Half value) {
  int const sign = value.bits >> 15, exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  float const magnitude = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                          : exponent != 0 ? std::ldexp(1024.0f + fraction, exponent - 25)
                                          : std::ldexp(static_cast<float>(fraction), -24);
  return sign != 0 ? -magnitude : magnitude;
}

inline float fast_exp_of_minus(float t) { return std::exp(-t); }

inline void multiply_tf32(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t const (&b)[2]) {
  struct Fragments {
    std::uint32_t a[4], b[2];
  };
  auto const lanes = emulator::gather_warp(Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  int const lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int q = 0; q < 4; ++q) {
    int const row = lane / 4 + q / 2 * 8, column = lane % 4 * 2 + q % 2;
    for (int k = 0; k < 8; ++k) {
      std::uint32_t const x = lanes[row % 8 * 4 + k % 4].a[row / 8 + k / 4 * 2];
      std::uint32_t const y = lanes[column * 4 + k % 4].b[k / 4];
      c[q] += bits_to_float(x & kTensorBits) * bits_to_float(y & kTensorBits);
    }
  }
}

template <int kThreads>
bool any_of_team(bool condition, std::source_location where = std::source_location::current()) {
  return kThreads > kWarp ? __syncthreads_or(condition, where) != 0 : __any_sync(kAllLanes, condition, where) != 0;
}

#endif

__device__ __forceinline__ float to_float(BFloat16 value) {
  return bits_to_float(static_cast<std::uint32_t>(value.bits) << 16);
}

// value = high + low to about 21 bits of the fraction, read by the tensor core. Rounding may turn a NaN into a number
// in `high`, but not in `low`.
__device__ __forceinline__ void split_tf32(float value, std::uint32_t& high, std::uint32_t& low) {
  high = (float_to_bits(value) + 0x1000u) & kTensorBits;
  low = float_to_bits(value - bits_to_float(high));
}

// 1 - exp(-t) for t >= 0, to a small relative error also for tiny t; NaN stays NaN.
__device__ __forceinline__ float one_minus_exp(float t) {
  float const series =
      t * (1 - t * (1.0f / 2) * (1 - t * (1.0f / 3) * (1 - t * (1.0f / 4) * (1 - t * (1.0f / 5) * (1 - t / 6)))));
  float const direct = 1 - fast_exp_of_minus(t);
  return t < 0.25f ? series : direct;
}
__device__ __forceinline__ double one_minus_exp(double t) { return -std::expm1(-t); }

}  // namespace hrel::cuda
