// The same entropies by eigenvalues in float64, for float64 operands, for orders that no rational function serves, and
// for filters whose float32 result is NaN. Blocks take turns at the filters; matrices lie in the workspace.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/entropies.cuh"

namespace hrel::cuda {

template <class Scalar>
struct ExactArguments {
  GramView<Scalar> gram;  // the given matrices; of maps where its data is null
  Maps maps;              // [N, F, D]
  LabelView<Scalar> labels;
  Scalar const* sigma;  // [F]
  double alpha;
  Scalar* entropy;        // [F]
  Scalar* joint_entropy;  // [F], null for given matrices
  Index num_matrices;
  bool only_not_finite;  // leave alone the filters whose results are finite
  double* workspace;     // [blocks, 2, packed N x N]

  HREL_HD int size() const { return static_cast<int>(gram.data != nullptr ? gram.size : maps.num_samples); }
};

inline constexpr int kExactStage = 8;  // positions

struct ExactBlock {
  union {
    double stage[kExactStage][kPackedSize];
    PackedVectors vectors;
  };
  double diagonal[kPackedSize], off_diagonal[kPackedSize], eigenvalues[kPackedSize];
  double parts[2 * kPackedWarps];  // of sums over the block
};

__device__ __forceinline__ double load_value(Maps const& maps, Index offset) {
  if (maps.element == Element::kFloat64) return static_cast<double const*>(maps.data)[offset];
  std::uint32_t bits[1];
  fetch_values(maps, bits, [&](int) { return offset; });
  float value;
  with_element(maps.element, [&](auto const& value_of_bits) { value = value_of_bits(bits[0]); });
  return value;
}

// matrix = A - 11'/N of a filter.
template <class Scalar>
__device__ __forceinline__ void centred_gaussian_of_maps(ExactArguments<Scalar> const& args, Index filter,
                                                         double* matrix, ExactBlock& s, int thread) {
  Maps const& maps = args.maps;
  int const n = args.size();
  double const sigma = static_cast<double>(args.sigma[filter]), scale = scale_of_width(sigma);
  for (Index first = 0; first < maps.num_positions; first += kExactStage) {
    int const rest =
        static_cast<int>(maps.num_positions - first < kExactStage ? maps.num_positions - first : kExactStage);
    for (int q = thread; q < rest * n; q += kPackedThreads) {
      int const row = q / rest, position = q % rest;
      Index const place = args.labels.order[row] * maps.sample_stride + filter * maps.filter_stride;
      s.stage[position][row] = scale * load_value(maps, place + maps.position_offset(first + position));
    }
    barrier<kPackedThreads>();  // the stage is filled
    Packed::for_each<kPackedThreads>(n, thread, [&](int offset, int row, int column) {
      double sum = first == 0 ? 0 : matrix[offset];
      for (int position = 0; position < rest; ++position) {
        double const difference = s.stage[position][row] - s.stage[position][column];
        sum += difference * difference;
      }
      matrix[offset] = sum;
    });
    barrier<kPackedThreads>();  // the stage is free
  }
  double const inverse = 1 / (sigma * scale);
  Packed::for_each<kPackedThreads>(n, thread, [&](int offset, int, int) {
    matrix[offset] = -one_minus_exp(matrix[offset] * inverse * inverse) / n;
  });
}

// The entropy of the tridiagonal form in `s`, known to the first thread; the form is free after the barrier in it.
__device__ __forceinline__ double entropy_bits_of_tridiagonal(ExactBlock& s, int n, double alpha, int thread) {
  if (thread < n) s.eigenvalues[thread] = eigenvalue_by_bisection({s.diagonal, s.off_diagonal, n}, thread);
  barrier<kPackedThreads>();  // the eigenvalues are written
  return thread == 0 ? entropy_bits_of_eigenvalues(s.eigenvalues, n, alpha) : 0;
}

template <class Scalar>
__global__ void __launch_bounds__(kPackedThreads, 1) exact_entropies_kernel(ExactArguments<Scalar> const args) {
  ExactBlock& s = *shared_storage<ExactBlock>();
  int const thread = static_cast<int>(threadIdx.x), n = args.size();
  double* const matrix = args.workspace + static_cast<Index>(blockIdx.x) * 2 * packed_elements(n);
  double* const copy = matrix + packed_elements(n);
  bool const has_labels = args.joint_entropy != nullptr;
#pragma unroll 1
  for (Index which = blockIdx.x; which < args.num_matrices; which += gridDim.x) {
    if (args.only_not_finite) {
      // The same for all threads, which read before the barriers on the way to a write.
      double const known = args.entropy[which] + (has_labels ? args.joint_entropy[which] : Scalar(0));
      if (known - known == 0) continue;
    }
    double rank_one = 1;
    if (args.gram.data != nullptr) {
      rank_one = load_given_matrix<Packed, kPackedThreads>(args.gram, which, matrix, s.parts, thread);
    } else {
      centred_gaussian_of_maps(args, which, matrix, s, thread);
    }
    // The joint entropy first: one tridiagonal form serves both in turn.
    if (has_labels && args.labels.gram == nullptr) {
      int first, size;
#pragma unroll 1
      for (int c = 0; class_block(args.labels, c, n, first, size); ++c) {
        if (size == 0) continue;
        // The threads that wrote the first rows copy them; before any others, tridiagonalise_packed has put barriers.
        Packed::for_each<kPackedThreads>(size, thread, [&](int offset, int row, int column) {
          copy[offset] = matrix[packed_offset(first + row, first + column)];
        });
        if (thread == 0 && first + size < n) s.off_diagonal[first + size - 1] = 0;
        tridiagonalise_packed(copy, {s.diagonal + first, s.off_diagonal + first, size}, static_cast<double>(size) / n,
                              s.vectors, thread);
      }
    } else if (has_labels) {
      double const mean = weigh_by_labels<Packed, kPackedThreads>(args.labels.gram, matrix, copy, n, s.parts, thread);
      tridiagonalise_packed(copy, {s.diagonal, s.off_diagonal, n}, mean, s.vectors, thread);
    }
    if (has_labels) {
      double const bits = entropy_bits_of_tridiagonal(s, n, args.alpha, thread);
      if (thread == 0) args.joint_entropy[which] = static_cast<Scalar>(bits);
    }
    tridiagonalise_packed(matrix, {s.diagonal, s.off_diagonal, n}, rank_one, s.vectors, thread);
    double const bits = entropy_bits_of_tridiagonal(s, n, args.alpha, thread);
    if (thread == 0) args.entropy[which] = static_cast<Scalar>(bits);
  }
}

}  // namespace hrel::cuda
