// What one ISA level offers: kernels made of tasks that do not depend on each other, so that any thread may run any of
// them. SPDX-License-Identifier: MIT
#pragma once
#include <cstddef>

#include "cpu/scratch.h"
#include "numerics/problem.h"

namespace hrel::cpu {

// Who computes what, which the results do not depend on: the first tasks take as much as one can, the others share the
// rest evenly.
struct Tasks {
  Index num_full, num_others;

  Index count() const { return num_full + num_others; }
};

template <class Problem>
struct Kernel {
  Tasks (*tasks)(Problem const&, Index num_threads);
  Index (*scratch_bytes)(Problem const&);  // of one thread
  void (*run)(Problem const&, Index task, Tasks const&, std::byte* scratch);
};

// The layer's width in two kernels: distances slice by slice, then, when they are summed, the alignment of every width.
template <class Scalar>
struct LayerAlignment {
  AlignmentProblem<Scalar> problem;
  Index num_slices;
  Scalar* slices;     // [S, triangle] distances of each slice
  Scalar* distances;  // [triangle] their sum
};

template <class Scalar>
struct LevelKernels {
  Kernel<RelevanceProblem<Scalar>> relevance;
  Kernel<PermutationProblem<Scalar>> permuted_joint_entropy;
  Kernel<EntropyProblem<Scalar>> matrix_entropy;
  Kernel<AlignmentProblem<Scalar>> filter_alignment;
  Kernel<LayerAlignment<Scalar>> layer_distances;
  Kernel<LayerAlignment<Scalar>> layer_alignment;
};

struct Level {
  char const* name;
  LevelKernels<float> float_kernels;
  LevelKernels<double> double_kernels;
};

// One a file compiled from isa_level.cpp; the build decides which exist.
extern Level const kLevelBaseline;
#if defined(HREL_X86_LEVELS)
extern Level const kLevelV3;
extern Level const kLevelV4;
#endif

}  // namespace hrel::cpu
