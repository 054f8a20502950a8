// Pointers with their extents and strides, counted in elements and passed by value. A view owns nothing.
// SPDX-License-Identifier: MIT
#pragma once
#include "numerics/config.h"

namespace hrel {

// The maps of a layer, [N, F, D]: D values per filter and sample. Any strides, so NCHW and channels_last are both read
// in place.
template <class Scalar>
struct ActivationView {
  Scalar const* data;
  Index num_samples, num_filters, num_features;
  Index sample_stride, filter_stride, feature_stride;

  HREL_HD Scalar const* map(Index sample, Index filter) const {
    return data + sample * sample_stride + filter * filter_stride;
  }
};

// A symmetric tridiagonal matrix of `size` rows; off_diagonal[i] couples the rows i and i + 1. Real is a number or a
// pack of lanes.
template <class Real>
struct TridiagonalView {
  Real* diagonal;      // [size]
  Real* off_diagonal;  // [size - 1]
  Index size;
};

}  // namespace hrel
