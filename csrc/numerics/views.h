// Pointers with their extents and strides, counted in elements and passed by value. A view owns nothing.
// SPDX-License-Identifier: MIT
#pragma once
#include "numerics/config.h"

namespace hrel {

// Half precision as it lies in memory; arithmetic is in float32.
struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

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

// Symmetric matrices, [B, N, N], any strides.
template <class Scalar>
struct GramView {
  Scalar const* data;
  Index num_matrices, size;
  Index matrix_stride, row_stride, column_stride;

  HREL_HD Scalar at(Index matrix, Index row, Index column) const {
    return data[matrix * matrix_stride + row * row_stride + column * column_stride];
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

// A symmetric matrix of five diagonals; first[i] couples the rows i and i + 1, second[i] the rows i and i + 2.
template <class Real>
struct PentadiagonalView {
  Real* diagonal;  // [size]
  Real* first;     // [size - 1]
  Real* second;    // [size - 2]
  Index size;
};

// A symmetric matrix of 2 kBand + 1 diagonals; beside[i kBand + d] couples the rows i and i + 1 + d and is 0 past the
// last row.
inline constexpr int kBand = 8;
template <class Real>
struct BandView {
  Real* diagonal;  // [size]
  Real* beside;    // [size, kBand]
  Index size;
};

}  // namespace hrel
