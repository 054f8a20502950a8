// The reflector that takes a vector to beta e_0, of which the reductions in float32 are made.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/intrinsics.cuh"
#include "numerics/rational_trace.h"

namespace hrel::cuda {

// For a vector x with the first element `head` and the sum of squares `tail` of the others. u = x / beta - e_0 is scale
// x but for its first element; beta = -sign(head) |x|, |u|^2 = 2 h, h = 1 - head / beta: nothing overflows on matrices
// of low rank. scale, first and inverse_h are 0 where the vector is reduced already, and beta is its head.
struct Reflector {
  static constexpr float kNegligibleSquare = 1e-30f;

  bool reduced;
  float beta, scale, first, inverse_h;

  __device__ __forceinline__ Reflector(float head, float tail) : reduced(!(tail > kNegligibleSquare)) {
    float const square = tail + head * head, inverse_norm = reciprocal_root(square);
    float const signed_inverse = head > 0 ? -inverse_norm : inverse_norm, minus_h = head * signed_inverse - 1;
    beta = reduced ? head : square * signed_inverse;
    scale = reduced ? 0 : signed_inverse;
    first = reduced ? 0 : minus_h;
    inverse_h = reduced ? 0 : -reciprocal(minus_h);
  }
};

}  // namespace hrel::cuda
