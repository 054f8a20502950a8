// Scratch memory of one thread, dealt out piece by piece. Without memory it only counts the bytes, so that a kernel
// states its need by the same code that uses it. SPDX-License-Identifier: MIT
#pragma once
#include <cstddef>

#include "numerics/config.h"

namespace hrel::cpu {

inline constexpr Index kScratchAlignment = 64;

struct Scratch {
  std::byte* memory;  // aligned to kScratchAlignment, or null
  Index used = 0;     // bytes

  template <class T>
  HREL_HD T* take(Index count) {
    T* const piece = memory == nullptr ? nullptr : reinterpret_cast<T*>(memory + used);
    Index const bytes = count * static_cast<Index>(sizeof(T));
    used += (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
    return piece;
  }
};

}  // namespace hrel::cpu
