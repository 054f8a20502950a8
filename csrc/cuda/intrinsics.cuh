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
#include <algorithm>
#include <numeric>
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

// The same number, of which the compiler computes nothing before: where registers are scarce, what follows from it
// would otherwise wait in memory from as early on as it can be known.
__device__ __forceinline__ int known_from_here(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// exp(-t), t >= 0, to about 2 units of the last place; what is no normal number comes out as 0.
__device__ __forceinline__ float fast_exp_of_minus(float t) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(t * -1.44269504f));
  return result;
}

// 1 / sqrt(x) of a normal number, to 2 units of the last place.
__device__ __forceinline__ float reciprocal_root(float x) {
  float result;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// c += a b over a warp, a 16 x 8, b 8 x 8, of whose fractions 10 bits are read. With g = lane / 4 and t = lane % 4: a =
// {(g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)}, b = {(t, g), (t + 4, g)}, c = {(g, 2t), (g, 2t + 1), (g + 8, 2t),
// (g + 8, 2t + 1)}.
__device__ __forceinline__ void multiply_tf32(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t const (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same, c = a b.
__device__ __forceinline__ void product_tf32(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t const (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
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

inline int known_from_here(int value) { return value; }

inline float reciprocal_root(float x) { return 1 / std::sqrt(x); }

// The sum of addends as tensor cores have been found to take it: each is cut to the bits of the largest one, and so is
// the result (Fasi, Higham, Mikaitis, Pranesh, PeerJ Comput. Sci. 7:e330, 2021). With no bits to spare, as on the
// first.
template <std::size_t kCount>
float sum_of_tensor_core(double const (&addends)[kCount]) {
  double largest = 0, sum = 0;
  for (double addend : addends) {
    if (!std::isfinite(addend)) return static_cast<float>(std::accumulate(addends, addends + kCount, 0.0));
    largest = std::max(largest, std::fabs(addend));
  }
  if (largest == 0) return 0;
  double const unit = std::ldexp(1.0, std::max(std::ilogb(largest) - 23, -149));
  for (double addend : addends) sum += std::trunc(addend / unit) * unit;
  double const of_sum = std::ldexp(1.0, sum == 0 ? 0 : std::max(std::ilogb(sum) - 23, -149));
  return static_cast<float>(std::trunc(sum / of_sum) * of_sum);
}

inline void multiply_tf32(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t const (&b)[2]) {
  struct Fragments {
    std::uint32_t a[4], b[2];
  };
  auto const lanes = emulator::gather_warp(Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  int const lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int q = 0; q < 4; ++q) {
    int const row = lane / 4 + q / 2 * 8, column = lane % 4 * 2 + q % 2;
    double addends[9] = {c[q]};
    for (int k = 0; k < 8; ++k) {
      std::uint32_t const x = lanes[row % 8 * 4 + k % 4].a[row / 8 + k / 4 * 2];
      std::uint32_t const y = lanes[column * 4 + k % 4].b[k / 4];
      addends[k + 1] = static_cast<double>(bits_to_float(x & kTensorBits)) * bits_to_float(y & kTensorBits);
    }
    c[q] = sum_of_tensor_core(addends);
  }
}

inline void product_tf32(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t const (&b)[2]) {
  c[0] = c[1] = c[2] = c[3] = 0;
  multiply_tf32(c, a, b);
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
