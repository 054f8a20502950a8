// S(A_f) and S(A_f, B) of every filter, or S of given matrices, one team a matrix and all in one launch:
//   distances -> A = exp(-d2 / sigma^2) / N, centred -> tridiagonal forms of A and of its class blocks -> entropies.
// Where rounding took an eigenvalue too far below 0 the entropy is NaN; cuda/exact.cuh computes it again.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/distances.cuh"
#include "cuda/packed_tridiagonal.cuh"
#include "cuda/spectrum.cuh"
#include "cuda/tridiagonal.cuh"

namespace hrel::cuda {

struct EntropiesArguments {
  GramView<float> gram;     // the given matrices; of maps where its data is null
  Maps maps;                // [N, F, D]
  LabelView<float> labels;  // of maps
  float const* sigma;       // [F]
  EntropyOrder order;
  float* entropy;        // [F]
  float* joint_entropy;  // [F], of maps
  float* slots;          // distances, see cuda/distances.cuh; null where the kernel computes them
  Index splits;
  Index first_filter, num_filters;  // of this launch

  HREL_HD int size() const { return static_cast<int>(gram.data != nullptr ? gram.size : maps.num_samples); }
};

// Calls visit(offset, row, column) for the packed lower triangle, shared out among the threads: rows by warps, columns
// by lanes.
template <int kThreads, class Visit>
__device__ __forceinline__ void for_each_packed(int n, int thread, Visit const& visit) {
  for (int row = thread / kWarp; row < n; row += kThreads / kWarp) {
    for (int column = thread % kWarp; column <= row; column += kWarp) visit(packed_offset(row, column), row, column);
  }
}

// The sum over the team, in a fixed order; `part` [kThreads / kWarp] is free again after the next barrier.
template <int kThreads, class Real>
__device__ __forceinline__ Real team_sum(Real value, Real* part, int thread) {
  value = warp_sum(value);
  if constexpr (kThreads > kWarp) {
    if (thread % kWarp == 0) part[thread / kWarp] = value;
    barrier<kThreads>();  // the parts are written
    value = 0;
    for (int q = 0; q < kThreads / kWarp; ++q) value += part[q];
  }
  return value;
}

// matrix = G / tr G - m 11', m the mean of its elements; returns the rank-one part m n that is taken out.
// parts [2 kThreads / kWarp].
template <int kThreads, class Scalar, class Real>
__device__ __forceinline__ Real load_given_matrix(GramView<Scalar> const& gram, Index which, Real* matrix, Real* parts,
                                                  int thread) {
  int const n = static_cast<int>(gram.size);
  Real trace = 0, sum = 0;
  for_each_packed<kThreads>(n, thread, [&](int offset, int row, int column) {
    Real const element = gram.at(which, row, column);
    matrix[offset] = element;
    trace += row == column ? element : 0;
    sum += row == column ? element : 2 * element;
  });
  trace = team_sum<kThreads>(trace, parts, thread);
  sum = team_sum<kThreads>(sum, parts + kThreads / kWarp, thread);
  Real const inverse_trace = trace > 0 ? 1 / trace : static_cast<Real>(bits_to_float(kNaN));
  Real const mean = sum / (static_cast<Real>(n) * static_cast<Real>(n));
  // The difference first: near-equal elements leave it exact.
  for_each_packed<kThreads>(n, thread,
                            [&](int offset, int, int) { matrix[offset] = (matrix[offset] - mean) * inverse_trace; });
  return mean * static_cast<Real>(n) * inverse_trace;
}

// matrix = A - 11'/N = -(1 - exp(-d2 / sigma^2)) / N; distances(offset, d2) reads some of maps scaled by
// scale_of_width(sigma). The diagonal of the distances is 0, or NaN where a value is not finite.
template <int kThreads, class Distances>
__device__ __forceinline__ void centred_gaussian(float* matrix, int n, float sigma, Distances const& distances,
                                                 int thread) {
  float const inverse = 1 / (sigma * scale_of_width(sigma)), scale = -1 / static_cast<float>(n);
  constexpr int kAtOnce = 8;  // elements under way
  int const elements = static_cast<int>(packed_elements(n));
#pragma unroll 1
  for (int first = thread; first < elements; first += kAtOnce * kThreads) {
    int offset[kAtOnce];
    float d2[kAtOnce];
#pragma unroll
    for (int q = 0; q < kAtOnce; ++q) {
      offset[q] = first + q * kThreads < elements ? first + q * kThreads : first;  // again: the same value
    }
    distances(offset, d2);
#pragma unroll
    for (int q = 0; q < kAtOnce; ++q) {
      // Twice times 1/sigma: its square may not be a normal number.
      matrix[offset[q]] = one_minus_exp(d2[q] * inverse * inverse) * scale;
    }
  }
}

// The label kernel L takes the place of the classes, from the centred A, which may lie in the same place:
// weighed = A o L - (mean of L) 11'/N. Returns the mean. parts [kThreads / kWarp].
template <int kThreads, class Scalar, class Real>
__device__ __forceinline__ Real weigh_by_labels(Scalar const* label_gram, Real const* centred, Real* weighed, int n,
                                                Real* parts, int thread) {
  Real sum = 0;
  for_each_packed<kThreads>(n, thread, [&](int, int row, int column) {
    Real const weight = label_gram[static_cast<Index>(row) * n + column];
    sum += row == column ? weight : 2 * weight;
  });
  Real const inverse = 1 / static_cast<Real>(n), mean = team_sum<kThreads>(sum, parts, thread) * inverse * inverse;
  for_each_packed<kThreads>(n, thread, [&](int offset, int row, int column) {
    Real const weight = label_gram[static_cast<Index>(row) * n + column];
    weighed[offset] = centred[offset] * weight + (weight - mean) * inverse;
  });
  return mean;
}

// One class of the label kernel: rows first .. first + size - 1 of the sorted samples, none of an empty class. False
// past the last class.
template <class Scalar>
__device__ __forceinline__ bool class_block(LabelView<Scalar> const& labels, int c, int n, int& first, int& size) {
  first = c < n ? static_cast<int>(labels.class_offsets[c]) : n;
  if (first >= n) return false;
  size = static_cast<int>(labels.class_offsets[c + 1]) - first;
  return true;
}

// The block of a class within the tridiagonal form of A o B: end to end, uncoupled.
__device__ __forceinline__ TridiagonalView<float> part_of(TridiagonalView<float> const& tri, int first, int size,
                                                          bool writes) {
  TridiagonalView<float> const part{tri.diagonal + first, tri.off_diagonal + first, size};
  if (writes && first + size < tri.size) part.off_diagonal[size - 1] = 0;
  return part;
}

// Class blocks of up to ClassShape::kSize samples, each by one warp.
template <int kThreads>
__device__ __forceinline__ void tridiagonalise_small_classes(LabelView<float> const& labels, float const* matrix,
                                                             TridiagonalView<float> const& joint,
                                                             HouseholderVectors<ClassShape>* vectors, int thread) {
  int const n = static_cast<int>(joint.size), warp = thread / kWarp, lane = thread % kWarp;
  int first, size;
#pragma unroll 1
  for (int c = warp; class_block(labels, c, n, first, size); c += kThreads / kWarp) {
    if (size == 0 || size > ClassShape::kSize) continue;
    RegisterTridiagonal<ClassShape>::run(matrix, first, part_of(joint, first, size, lane == 0),
                                         static_cast<float>(size) / static_cast<float>(n), vectors[warp], lane);
  }
}

template <class Kernel>
struct RegisterTeam {
  using Shape = typename Kernel::Shape;
  union {
    DistanceStage<Shape> stage;
    float matrix[packed_elements(Kernel::kSize)];
  };
  union {
    HouseholderVectors<Shape> vectors;
    HouseholderVectors<ClassShape> class_vectors[Shape::kWarps];
  };
  Spectra<Kernel::kSize, Shape::kWarps> spectra;
};

// Matrices of up to 128 rows: reduced in registers.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks) entropies_kernel(EntropiesArguments const args) {
  using Shape = typename Kernel::Shape;
  constexpr int kThreads = Shape::kThreads;
  int const team = static_cast<int>(threadIdx.x) / kThreads, thread = static_cast<int>(threadIdx.x) % kThreads;
  Index const which = static_cast<Index>(blockIdx.x) * Kernel::kTeams + team;
  if (which >= args.num_filters) return;
  Index const filter = args.first_filter + which;
  RegisterTeam<Kernel>& s = shared_storage<RegisterTeam<Kernel>>()[team];
  int const n = args.size();
  bool const has_labels = args.joint_entropy != nullptr;

  float rank_one = 1;
  if (args.gram.data != nullptr) {
    rank_one = load_given_matrix<kThreads>(args.gram, filter, s.matrix, s.spectra.parts, thread);
  } else {
    float const sigma = args.sigma[filter];
    if (args.slots == nullptr) {
      squared_distances_of_filter<Shape>(
          args.maps, args.labels.order, filter, 0, args.maps.num_positions, 1, args.sigma, s.stage, thread,
          [&](int row, int column, float distance) { s.matrix[packed_offset(row, column)] = distance; });
      barrier<kThreads>();  // the distances are written
      auto const own = [&]<int kCount>(int const(&offset)[kCount], float (&d2)[kCount]) {
#pragma unroll
        for (int q = 0; q < kCount; ++q) d2[q] = s.matrix[offset[q]];
      };
      centred_gaussian<kThreads>(s.matrix, n, sigma, own, thread);
    } else {
      auto const of_slots = [&](auto const& offset, auto& d2) {
        distances_of_slots(args.slots, args.splits, n, which, offset, d2);
      };
      centred_gaussian<kThreads>(s.matrix, n, sigma, of_slots, thread);
    }
  }

  // The matrix itself, then the classes too large for one warp, or A o B for another label kernel: one loop, so that
  // the unrolled steps exist once.
#pragma unroll 1
  for (int task = -1; task < n; ++task) {
    int first = 0, size = n;
    if (task == 0 && (!has_labels || args.labels.gram != nullptr)) {
      if (!has_labels) break;
      rank_one = weigh_by_labels<kThreads>(args.labels.gram, s.matrix, s.matrix, n, s.spectra.parts, thread);
    } else if (task >= 0) {
      if (args.labels.gram != nullptr || !class_block(args.labels, task, n, first, size)) break;
      if (size == 0 || (Kernel::kSize > ClassShape::kSize && size <= ClassShape::kSize)) continue;
      rank_one = static_cast<float>(size) / static_cast<float>(n);
    }
    barrier<kThreads>();  // the matrix is written
    RegisterTridiagonal<Shape>::run(s.matrix, first,
                                    part_of(s.spectra.tri(task < 0 ? 0 : 1, n), first, size, thread == 0), rank_one,
                                    s.vectors, thread);
  }
  if constexpr (Kernel::kSize > ClassShape::kSize) {
    if (has_labels && args.labels.gram == nullptr) {
      tridiagonalise_small_classes<kThreads>(args.labels, s.matrix, s.spectra.tri(1, n), s.class_vectors, thread);
    }
  }
  barrier<kThreads>();  // the tridiagonal forms are written
  write_entropies<kThreads>(s.spectra, n, args.order, args.entropy + filter,
                            has_labels ? args.joint_entropy + filter : nullptr, thread);
}

struct PackedBlock {
  union {
    PackedVectors<float> vectors;
    HouseholderVectors<ClassShape> class_vectors[kPackedWarps];
  };
  Spectra<Kernel256::kSize, Kernel256::Shape::kWarps> spectra;
};
static_assert(sizeof(PackedBlock) <= kSharedBytesBesideMatrix);

// Matrices of more than 128 rows: kept in the workspace, reduced in a copy in shared memory.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    packed_entropies_kernel(EntropiesArguments const args) {
  constexpr int kThreads = Kernel::kThreads;
  static_assert(kThreads == kPackedThreads);
  int const thread = static_cast<int>(threadIdx.x), n = args.size();
  Index const which = static_cast<Index>(blockIdx.x), filter = args.first_filter + which;
  PackedBlock& s = *shared_storage<PackedBlock>();
  float* const copy = reinterpret_cast<float*>(&s + 1);  // packed, of the size of the problem
  float* const matrix = args.slots + which * args.splits * packed_elements(n);
  bool const has_labels = args.joint_entropy != nullptr;

  float rank_one = 1;
  if (args.gram.data != nullptr) {
    rank_one = load_given_matrix<kThreads>(args.gram, filter, matrix, s.spectra.parts, thread);
  } else {
    auto const of_slots = [&](auto const& offset, auto& d2) {
      distances_of_slots(args.slots, args.splits, n, which, offset, d2);
    };
    centred_gaussian<kThreads>(matrix, n, args.sigma[filter], of_slots, thread);
    barrier<kThreads>();  // the matrix is written
  }

#pragma unroll 1
  for (int task = -1; task < n; ++task) {  // as in entropies_kernel
    int first = 0, size = n;
    if (task == 0 && (!has_labels || args.labels.gram != nullptr)) {
      if (!has_labels) break;
      rank_one = weigh_by_labels<kThreads>(args.labels.gram, matrix, matrix, n, s.spectra.parts, thread);
    } else if (task >= 0) {
      if (args.labels.gram != nullptr || !class_block(args.labels, task, n, first, size)) break;
      if (size <= ClassShape::kSize) continue;
      rank_one = static_cast<float>(size) / static_cast<float>(n);
    }
    // load_given_matrix and weigh_by_labels leave each row to the warp that copies it; before a class,
    // tridiagonalise_packed has put barriers.
    for_each_packed<kThreads>(size, thread, [&](int offset, int row, int column) {
      copy[offset] = matrix[packed_offset(first + row, first + column)];
    });
    tridiagonalise_packed(copy, part_of(s.spectra.tri(task < 0 ? 0 : 1, n), first, size, thread == 0), rank_one,
                          s.vectors, thread);
  }
  if (has_labels && args.labels.gram == nullptr) {
    tridiagonalise_small_classes<kThreads>(args.labels, matrix, s.spectra.tri(1, n), s.class_vectors, thread);
  }
  barrier<kThreads>();  // the tridiagonal forms are written
  write_entropies<kThreads>(s.spectra, n, args.order, args.entropy + filter,
                            has_labels ? args.joint_entropy + filter : nullptr, thread);
}

}  // namespace hrel::cuda
