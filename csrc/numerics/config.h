// What every file of csrc shares: the index type and the prefix of functions that run on host and device.
// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

static_assert(__cplusplus >= 202002L, "hrel_ext is C++20");

// Always inlined: a copy of the function that is emitted at one ISA level must never be linked into another.
#if defined(__CUDACC__)
#define HREL_HD __host__ __device__ __forceinline__
#else
#define HREL_HD inline __attribute__((always_inline))
#endif

// Before a loop: unroll it that many times.
#define HREL_PRAGMA(text) _Pragma(#text)
#if defined(__CUDACC__)
#define HREL_UNROLL(count) HREL_PRAGMA(unroll count)
#else
#define HREL_UNROLL(count) HREL_PRAGMA(GCC unroll count)
#endif

namespace hrel {

using Index = std::int64_t;

}  // namespace hrel
