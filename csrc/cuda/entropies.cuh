// S(A_f) and S(A_f, B) of every filter, or S of given matrices, one team a matrix and all in one launch:
//   distances -> A = exp(-d2 / sigma^2) / N, centred -> band forms of A and of its class blocks -> entropies.
// Where rounding took an eigenvalue too far below 0 the entropy is NaN; cuda/exact.cuh computes it again.
// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/band_reduction.cuh"
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
template <class Layout, int kThreads, class Scalar, class Real>
__device__ __forceinline__ Real load_given_matrix(GramView<Scalar> const& gram, Index which, Real* matrix, Real* parts,
                                                  int thread) {
  int const n = static_cast<int>(gram.size);
  Real trace = 0, sum = 0;
  Layout::template for_each<kThreads>(n, thread, [&](int offset, int row, int column) {
    bool const inside = row < n && column < n;
    Real const element = inside ? gram.at(which, row > column ? row : column, row > column ? column : row) : Scalar(0);
    matrix[offset] = element;
    trace += row == column ? element : 0;
    sum += row == column ? element : row > column ? 2 * element : 0;
  });
  trace = team_sum<kThreads>(trace, parts, thread);
  sum = team_sum<kThreads>(sum, parts + kThreads / kWarp, thread);
  Real const inverse_trace = trace > 0 ? 1 / trace : static_cast<Real>(bits_to_float(kNaN));
  Real const mean = sum / (static_cast<Real>(n) * static_cast<Real>(n));
  // The difference first: near-equal elements leave it exact.
  Layout::template for_each<kThreads>(n, thread, [&](int offset, int row, int column) {
    matrix[offset] = row < n && column < n ? (matrix[offset] - mean) * inverse_trace : 0;
  });
  return mean * static_cast<Real>(n) * inverse_trace;
}

// matrix = A - 11'/N = -(1 - exp(-d2 / sigma^2)) / N, tiled. distances(offset, d2) reads some of maps scaled by
// scale_of_width(sigma). The diagonal of the distances is 0, or NaN where a value is not finite.
template <int kThreads, class Distances>
__device__ __forceinline__ void centred_gaussian(float* matrix, int n, float sigma, Distances const& distances,
                                                 int thread) {
  float const inverse = 1 / (sigma * scale_of_width(sigma)), scale = -1 / static_cast<float>(n);
  for_each_tile<kThreads>(n, thread, [&](auto const& offset, auto const& row, auto const& column) {
    float d2[kAtOnce];
    distances(offset, d2);
#pragma unroll
    for (int q = 0; q < kAtOnce; ++q) {
      // Twice times 1/sigma: its square may not be a normal number.
      float const element = one_minus_exp(d2[q] * inverse * inverse) * scale;
      matrix[offset[q]] = row[q] < n && column[q] < n ? element : 0;
    }
  });
}

// The label kernel L takes the place of the classes, from the centred A, which may lie in the same place:
// weighed = A o L - (mean of L) 11'/N. Returns the mean. parts [kThreads / kWarp].
template <class Layout, int kThreads, class Scalar, class Real>
__device__ __forceinline__ Real weigh_by_labels(Scalar const* label_gram, Real const* centred, Real* weighed, int n,
                                                Real* parts, int thread) {
  auto const weight = [&](int row, int column) -> Real {
    return label_gram[static_cast<Index>(row > column ? row : column) * n + (row > column ? column : row)];
  };
  Real sum = 0;
  Layout::template for_each<kThreads>(n, thread, [&](int, int row, int column) {
    if (row < n && column <= row) sum += row == column ? weight(row, column) : 2 * weight(row, column);
  });
  Real const inverse = 1 / static_cast<Real>(n), mean = team_sum<kThreads>(sum, parts, thread) * inverse * inverse;
  Layout::template for_each<kThreads>(n, thread, [&](int offset, int row, int column) {
    if (row >= n || column >= n) return;
    Real const l = weight(row, column);
    weighed[offset] = centred[offset] * l + (l - mean) * inverse;
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

// The class of a row: its number, its first row and its size.
struct ClassOfRow {
  std::uint16_t number, first, size;
};

// That of all rows, thread c for the class c, whose size it returns; 0 past the last class.
__device__ __forceinline__ int find_classes(LabelView<float> const& labels, int n, ClassOfRow* classes, int thread) {
  int first, size;
  if (thread >= n || !class_block(labels, thread, n, first, size)) return 0;
  ClassOfRow const own{static_cast<std::uint16_t>(thread), static_cast<std::uint16_t>(first),
                       static_cast<std::uint16_t>(size)};
#pragma unroll 1
  for (int row = first; row < first + size; ++row) classes[row] = own;
  return size;
}

// The class of the thread's row as a block; none of more than kLargestBlock rows, or of a thread without a row.
__device__ __forceinline__ DiagonalBlock block_of_class(ClassOfRow const* classes, int n, int thread) {
  if (thread >= n) return {0, thread, 0, 0};
  ClassOfRow const own = classes[thread];
  return {own.number, own.first, own.size <= kLargestBlock ? own.size : 0,
          static_cast<float>(own.size) / static_cast<float>(n)};
}

// The classes of more than kLargestBlock rows, at most kBand of them, by one thread.
template <int kSize>
__device__ __forceinline__ void find_large_classes(LabelView<float> const& labels, int n, RankOneParts<kSize>& parts) {
  static_assert(kSize / (kLargestBlock + 1) <= kBand);
  int first, size, found = 0;
#pragma unroll 1
  for (int c = 0; class_block(labels, c, n, first, size); ++c) {
    bool const is_large = size > kLargestBlock;
#pragma unroll 1
    for (int row = first; row < first + size; ++row) parts.owner[row] = is_large ? found : -1;
    if (is_large) parts.rank_one[found++] = static_cast<float>(size) / static_cast<float>(n);
  }
  parts.count = found;
}

// matrix = A - 11'/N of a filter, in tiles.
template <class Kernel>
__device__ __forceinline__ void centred_gaussian_of_filter(EntropiesArguments const& args, int which,
                                                           DistanceStage<Kernel>& stage, float* matrix, int thread) {
  constexpr int kThreads = Kernel::Shape::kThreads;
  int const n = args.size();
  if (args.slots == nullptr) {
    if constexpr (Kernel::kSize <= kLargestFusedSize) {
      int const elements = tiled_elements(n);
      squared_distances_of_filter<Kernel>(args.maps, args.labels.order, static_cast<int>(args.first_filter) + which, 0,
                                          1, args.sigma, stage, known_from_here(thread),
                                          [&]<class Value>(int offset, Value distance) {
                                            if (offset >= elements) return;
                                            *reinterpret_cast<Value*>(matrix + offset) = distance;
                                          });
      barrier<kThreads>();  // the distances are written
      auto const own = [&](auto const& offset, auto& d2) {
#pragma unroll
        for (int q = 0; q < kAtOnce; ++q) d2[q] = matrix[offset[q]];
      };
      float const sigma = args.sigma[args.first_filter + known_from_here(which)];
      centred_gaussian<kThreads>(matrix, n, sigma, own, known_from_here(thread));
    }
  } else {
    auto const of_slots = [&](auto const& offset, auto& d2) {
      distances_of_slots(args.slots, args.splits, n, which, offset, d2);
    };
    centred_gaussian<kThreads>(matrix, n, args.sigma[args.first_filter + which], of_slots, thread);
  }
}

// Row `row` of the band in the three forms that its sums take it in, which do not overlap the matrix.
template <class Reduction, class Parts>
__device__ __forceinline__ void read_band(float const* matrix, Parts const& ones, TwoEndedBand const& band, int row) {
  int const n = static_cast<int>(band.whole.size), middle = row - band.above;
  if (row >= n) return;
  float const d = Reduction::band_element(matrix, n, row, row) + (row < ones.count ? ones.rank_one[row] : 0);
  band.whole.diagonal[row] = d;
  if (row >= n - band.reversed.size) band.reversed.diagonal[n - 1 - row] = d;
  bool const is_between = middle >= 0 && middle < band.between.size;
  if (is_between) band.between.diagonal[middle] = d;
#pragma unroll
  for (int k = 0; k < kBand; ++k) {
    float const beside = Reduction::band_element(matrix, n, row + 1 + k, row);
    band.whole.beside[row * kBand + k] = beside;
    if (row >= n - band.reversed.size) {
      band.reversed.beside[(n - 1 - row) * kBand + k] = Reduction::band_element(matrix, n, row, row - 1 - k);
    }
    if (is_between) band.between.beside[middle * kBand + k] = middle + 1 + k < band.between.size ? beside : 0;
  }
}

template <class Kernel>
struct RegisterTeam {
  static constexpr int kSize = Kernel::kSize;
  union {
    DistanceStage<Kernel> stage;
    float matrix[tiled_elements(kSize)];
  };
  BlockVectors<kSize> vectors;
  ClassOfRow classes[kSize];
  float diagonal[2][kSize], off_diagonal[2][kSize];  // of A and of A o B
  Traces traces[2];
  float parts[2];  // of sums over the team
};

// Matrices of up to 32 rows, each by a warp: reduced in registers, to three diagonals.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    register_entropies_kernel(EntropiesArguments const args) {
  constexpr int kThreads = Kernel::Shape::kThreads;
  static_assert(kThreads == kWarp && Kernel::kSize == kLargestBlock && kPoles + 1 <= kWarp / 2);
  int const team = static_cast<int>(threadIdx.x) / kThreads, thread = static_cast<int>(threadIdx.x) % kThreads;
  int const which = static_cast<int>(blockIdx.x) * Kernel::kTeams + team;
  if (which >= args.num_filters) return;
  Index const filter = args.first_filter + which;
  RegisterTeam<Kernel>& s = shared_storage<RegisterTeam<Kernel>>()[team];
  int const n = args.size();
  bool const has_labels = args.joint_entropy != nullptr, has_classes = has_labels && args.labels.gram == nullptr;
  int const form = thread / (kWarp / 2), index = thread % (kWarp / 2);  // the entropy that this half of the warp finds
  clear(s.traces[form], index);
  if (has_classes) find_classes(args.labels, n, s.classes, thread);

  DiagonalBlock block{0, 0, thread < n ? n : 0, 1};
  if (args.gram.data != nullptr) {
    block.rank_one = load_given_matrix<Tiled, kThreads>(args.gram, filter, s.matrix, s.parts, thread);
  } else {
    centred_gaussian_of_filter<Kernel>(args, which, s.stage, s.matrix, thread);
  }
  // A, then A o B.
#pragma unroll 1
  for (int pass = 0; pass < (has_labels ? 2 : 1); ++pass) {
    if (pass == 1 && has_classes) {
      block = block_of_class(s.classes, n, thread);
    } else if (pass == 1) {
      block.rank_one = weigh_by_labels<Tiled, kThreads>(args.labels.gram, s.matrix, s.matrix, n, s.parts, thread);
    }
    tridiagonalise_blocks<kThreads>(s.matrix, block, {s.diagonal[pass], s.off_diagonal[pass], n}, s.vectors, thread);
  }
  if (form == 0 || has_labels) {
    add_traces({s.diagonal[form], s.off_diagonal[form], n}, args.order, s.traces[form], index);
  }
  barrier<kThreads>();  // the traces are written
  if (index != 0 || (form == 1 && !has_labels)) return;
  float const bits = entropy_bits_of_traces(s.traces[form], args.order);
  if (form == 0) {
    args.entropy[filter] = bits;
  } else {
    args.joint_entropy[filter] = bits;
  }
}

template <class Kernel>
struct BandBlock {
  using Shape = typename Kernel::Shape;
  using Panel = cuda::Panel<Shape::kSize, Shape::kWarps>;
  union {
    Panel panel;
    BlockVectors<Shape::kThreads> vectors;
    BandStorage<Shape::kSize> band;  // of A, then of A o B
  };
  ClassOfRow classes[Shape::kSize];
  float class_diagonal[Shape::kSize], class_off_diagonal[Shape::kSize];  // of the classes that are reduced in registers
  Traces traces[2];                                                      // of A and of A o B
  RankOneParts<Shape::kSize> ones;
  int pass, passes;
  bool has_classes;                      // in the first pass, classes that are reduced in registers
  float parts[kPowers * Shape::kWarps];  // of sums over the block
};
static_assert(sizeof(BandBlock<Kernel256>) <= kSharedBytesBesideMatrix);

// Shared memory: the block, then the matrix in tiles, in whose place the distances are formed.
template <class Kernel>
constexpr std::size_t shared_bytes_of_band(int n, bool from_maps) {
  std::size_t const matrix = static_cast<std::size_t>(tiled_elements(n)) * sizeof(float);
  std::size_t const stage = from_maps ? sizeof(DistanceStage<Kernel>) : 0;
  return sizeof(BandBlock<Kernel>) + (matrix > stage ? matrix : stage);
}

// Larger matrices, each by a block: reduced in shared memory, to a band.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    band_entropies_kernel(EntropiesArguments const args) {
  using Shape = typename Kernel::Shape;
  using Block = BandBlock<Kernel>;
  constexpr int kThreads = Shape::kThreads;
  static_assert(kThreads == Kernel::kThreads && kThreads >= 2 * kWarp);
  int const n = args.size();
  Block& s = *shared_storage<Block>();
  float* const matrix = reinterpret_cast<float*>(&s + 1);
  auto& stage = *reinterpret_cast<DistanceStage<Kernel>*>(matrix);
  bool const has_labels = args.joint_entropy != nullptr, has_classes = has_labels && args.labels.gram == nullptr;
  // Asked for again by each part, so that nothing of it waits in registers.
  auto const own_index = [] { return known_from_here(static_cast<int>(threadIdx.x)); };
  // The place of the warp in work that not all have a part in: not the same one in blocks that share a multiprocessor.
  auto const own_place = [&] {
    unsigned const spread = static_cast<unsigned>(blockIdx.x) * 0x9e3779b9u >> 16;
    return known_from_here(static_cast<int>((threadIdx.x / kWarp + spread) % Shape::kWarps));
  };
  auto const own_filter = [&] { return args.first_filter + known_from_here(static_cast<int>(blockIdx.x)); };

  int thread = own_index();
  if (thread < kWarp) clear(s.traces[thread / (kWarp / 2)], thread % (kWarp / 2));
  for (int i = thread; i < n; i += kThreads) s.class_diagonal[i] = s.class_off_diagonal[i] = 0;
  bool const is_large = has_classes && find_classes(args.labels, n, s.classes, thread) > kLargestBlock;
  bool const has_large = any_of_team<kThreads>(is_large);
  // A; then, in a second pass, A o B of the classes that are too large for registers, or for another label kernel.
  if (thread == 0) {
    s.pass = 0;
    s.passes = has_large || (has_labels && !has_classes) ? 2 : 1;
    s.has_classes = has_classes;
  }
  barrier<kThreads>();  // the passes are known

#pragma unroll 1
  do {
    bool const of_classes = s.pass == 1 && has_classes;
    if (of_classes) {
      if (thread == 0) find_large_classes(args.labels, n, s.ones);
      barrier<kThreads>();  // the large classes are written
    } else {
      for (int row = thread; row < Shape::kSize; row += kThreads) s.ones.owner[row] = row < n ? 0 : -1;
      if (thread == 0) s.ones.rank_one[0] = 1, s.ones.count = 1;
    }
    if (args.gram.data != nullptr) {
      float const rank_one = load_given_matrix<Tiled, kThreads>(args.gram, own_filter(), matrix, s.parts, thread);
      if (thread == 0) s.ones.rank_one[0] = rank_one;
    } else {
      centred_gaussian_of_filter<Kernel>(args, known_from_here(static_cast<int>(blockIdx.x)), stage, matrix, thread);
      if (of_classes) {  // each thread in the elements that it has written
        Tiled::for_each<kThreads>(n, thread, [&](int offset, int row, int column) {
          if (s.ones.owner[row] != s.ones.owner[column] || s.ones.owner[row] < 0) matrix[offset] = 0;
        });
      }
      if (s.pass == 1 && !has_classes) {
        float const mean = weigh_by_labels<Tiled, kThreads>(args.labels.gram, matrix, matrix, n, s.parts, thread);
        if (thread == 0) s.ones.rank_one[0] = mean;
      }
    }
    thread = own_index();
    if (s.has_classes) {
      tridiagonalise_blocks<kThreads>(matrix, block_of_class(s.classes, known_from_here(n), thread),
                                      {s.class_diagonal, s.class_off_diagonal, n}, s.vectors, thread);
    }
    thread = own_index();
    barrier<kThreads>();  // the matrix and its parts of rank one are written
    using Reduction = BandReduction<typename Block::Panel>;
    Reduction::run(matrix, n, s.ones, s.panel, own_place(), thread % kWarp);
    thread = own_index();
    TwoEndedBand const band = two_ended_band(s.band, known_from_here(n));
    read_band<Reduction>(matrix, s.ones, band, thread);
    barrier<kThreads>();  // the band is written

    float sums[kPowers] = {};
    if (thread < n) power_terms(band.whole, thread, sums);
#pragma unroll
    for (int k = 0; k < kPowers; ++k) {
      float const sum = team_sum<kThreads>(sums[k], s.parts + k * Shape::kWarps, thread);
      if (thread == 0) s.traces[s.pass].power[k] += sum;
    }
    if (own_place() == 0 && args.order.spectrum == Spectrum::kRational) {
      float trace, lowest;
      resolvent_trace(band, args.order.rational, trace, lowest, own_index() % kWarp);
      int const lane = own_index() % kWarp;
      if (lane < kPoles) add_pole(s.traces[s.pass], args.order.rational, lane, trace, lowest);
    }
    if (own_place() == 1 && s.has_classes) {
      add_traces({s.class_diagonal, s.class_off_diagonal, n}, args.order, s.traces[1], own_index() % kWarp);
    }
    barrier<kThreads>();  // the traces are written, and the band is free
    thread = own_index();
    if (thread == 0) ++s.pass, s.has_classes = false;
    barrier<kThreads>();  // the pass is known
  } while (s.pass < s.passes);
  if (thread % kWarp != 0 || thread > kWarp || (thread > 0 && !has_labels)) return;
  float const bits = entropy_bits_of_traces(s.traces[thread / kWarp], args.order);
  if (thread == 0) {
    args.entropy[own_filter()] = bits;
  } else {
    args.joint_entropy[own_filter()] = bits;
  }
}

}  // namespace hrel::cuda
