// The kernels of one ISA level. Compiled once per level, with HREL_LEVEL its namespace and HREL_LEVEL_NAME its name;
// all code below it lives in that namespace or is always inlined, so that no instruction of one level gets into
// another. SPDX-License-Identifier: MIT
#include "cpu/alignment.h"
#include "cpu/entropy.h"
#include "cpu/level.h"
#include "cpu/relevance.h"

namespace hrel::cpu {
namespace HREL_LEVEL {
namespace {

// float32 unless eigenvalues are wanted: those of a float32 reduction are too noisy near 0, where g is steep.
template <class Scalar>
struct NativePack;
template <>
struct NativePack<float> {
  using Type = FloatPack;
};
template <>
struct NativePack<double> {
  using Type = DoublePack;
};

template <class Pack>
Index groups_of(Index count) {
  return (count + Lanes<Pack>::kCount - 1) / Lanes<Pack>::kCount;
}

template <class Pack>
int members_of(Index group, Index count) {
  Index const rest = count - group * Lanes<Pack>::kCount;
  return static_cast<int>(rest < Lanes<Pack>::kCount ? rest : Lanes<Pack>::kCount);
}

template <class Scalar>
struct Relevance {
  using Problem = RelevanceProblem<Scalar>;
  template <class Pack>
  using GroupScratch = RelevanceScratch<Pack>;

  static Index count(Problem const& problem) { return problem.acts.num_filters; }
  static Index size(Problem const& problem) { return problem.acts.num_samples; }

  template <class Pack>
  static void run(Problem const& problem, Index first, int members, Scratch memory, bool* doubtful) {
    relevance_of_group<Pack>(problem, first, members, memory, doubtful);
  }
};

template <class Scalar>
struct MatrixEntropy {
  using Problem = EntropyProblem<Scalar>;
  template <class Pack>
  using GroupScratch = EntropyScratch<Pack>;

  static Index count(Problem const& problem) { return problem.gram.num_matrices; }
  static Index size(Problem const& problem) { return problem.gram.size; }

  template <class Pack>
  static void run(Problem const& problem, Index first, int members, Scratch memory, bool* doubtful) {
    entropy_of_group<Pack>(problem, first, members, memory, doubtful);
  }
};

// Entropies of a group of filters or matrices; those that turn out doubtful once more, alone, by eigenvalues.
template <class Scalar, class Group>
struct Entropies {
  using Native = typename NativePack<Scalar>::Type;
  using Problem = typename Group::Problem;

  static bool takes_eigenvalues(Problem const& problem) { return problem.order.spectrum == Spectrum::kEigenvalues; }

  static Index num_tasks(Problem const& problem) {
    Index const count = Group::count(problem);
    return takes_eigenvalues(problem) ? groups_of<DoublePack>(count) : groups_of<Native>(count);
  }

  template <class Pack>
  static Index bytes(Problem const& problem) {
    Scratch memory{nullptr};
    typename Group::template GroupScratch<Pack>(memory, Group::size(problem));
    return memory.used;
  }

  static Index scratch_bytes(Problem const& problem) {
    Index const doubles = bytes<DoublePack>(problem), natives = bytes<Native>(problem);
    return doubles > natives ? doubles : natives;
  }

  template <class Pack>
  static void run_group(Problem const& problem, Index task, std::byte* scratch) {
    constexpr int kLanes = Lanes<Pack>::kCount;
    bool doubtful[kLanes] = {};
    int const members = members_of<Pack>(task, Group::count(problem));
    Group::template run<Pack>(problem, task * kLanes, members, Scratch{scratch}, doubtful);
    for (int lane = 0; lane < members; ++lane) {
      if (!doubtful[lane]) continue;
      Problem exact = problem;
      exact.order.spectrum = Spectrum::kEigenvalues;
      bool never[Lanes<DoublePack>::kCount] = {};
      Group::template run<DoublePack>(exact, task * kLanes + lane, 1, Scratch{scratch}, never);
    }
  }

  static void run(Problem const& problem, Index task, std::byte* scratch) {
    if (takes_eigenvalues(problem)) {
      run_group<DoublePack>(problem, task, scratch);
    } else {
      run_group<Native>(problem, task, scratch);
    }
  }

  static constexpr Kernel<Problem> kKernel{num_tasks, scratch_bytes, run};
};

template <class Scalar>
struct FilterAlignment {
  using Pack = typename NativePack<Scalar>::Type;
  using Problem = AlignmentProblem<Scalar>;

  static Index num_tasks(Problem const& problem) { return groups_of<Pack>(problem.acts.num_filters); }

  static Index scratch_bytes(Problem const& problem) {
    Index const n = problem.acts.num_samples;
    Scratch memory{nullptr};
    memory.take<Pack>(triangle_elements(n));
    DistanceScratch<Pack>(memory, n);
    AlignmentScratch<Scalar>{memory};
    return memory.used;
  }

  static void run(Problem const& problem, Index task, std::byte* scratch) {
    alignment_of_group<Pack>(problem, task * Lanes<Pack>::kCount, members_of<Pack>(task, problem.acts.num_filters),
                             Scratch{scratch});
  }

  static constexpr Kernel<Problem> kKernel{num_tasks, scratch_bytes, run};
};

template <class Scalar>
struct LayerDistances {
  using Pack = typename NativePack<Scalar>::Type;
  using Problem = LayerAlignment<Scalar>;

  static Index num_tasks(Problem const& layer) { return layer.num_slices; }

  static Index scratch_bytes(Problem const& layer) {
    Scratch memory{nullptr};
    MapScratch<Pack>(memory, layer.problem.acts.num_samples);
    return memory.used;
  }

  static void run(Problem const& layer, Index task, std::byte* scratch) {
    ActivationView<Scalar> const& acts = layer.problem.acts;
    Index const values = acts.num_filters * acts.num_features;
    distances_of_slice<Pack>(acts, layer.problem.labels.order, task * values / layer.num_slices,
                             (task + 1) * values / layer.num_slices,
                             layer.slices + task * triangle_elements(acts.num_samples), Scratch{scratch});
  }

  static constexpr Kernel<Problem> kKernel{num_tasks, scratch_bytes, run};
};

template <class Scalar>
struct LayerWidths {
  using Pack = typename NativePack<Scalar>::Type;
  using Problem = LayerAlignment<Scalar>;

  static Index num_tasks(Problem const&) { return 1; }

  static Index scratch_bytes(Problem const&) {
    Scratch memory{nullptr};
    AlignmentScratch<Scalar>{memory};
    return memory.used;
  }

  static void run(Problem const& layer, Index, std::byte* scratch) {
    AlignmentProblem<Scalar> const& problem = layer.problem;
    Scratch memory{scratch};
    double const mean_distance = problem.mean_distance[0];
    alignment_of_kernels<Pack>(
        problem.labels, problem.acts.num_samples, problem.multiples, problem.num_widths, 1, &mean_distance,
        [&](int, Index offset) { return layer.distances[offset]; }, AlignmentScratch<Scalar>(memory),
        problem.alignment);
  }

  static constexpr Kernel<Problem> kKernel{num_tasks, scratch_bytes, run};
};

template <class Scalar>
constexpr LevelKernels<Scalar> kKernels{
    Entropies<Scalar, Relevance<Scalar>>::kKernel, Entropies<Scalar, MatrixEntropy<Scalar>>::kKernel,
    FilterAlignment<Scalar>::kKernel, LayerDistances<Scalar>::kKernel, LayerWidths<Scalar>::kKernel};

}  // namespace
}  // namespace HREL_LEVEL

extern Level const HREL_LEVEL_TABLE;
Level const HREL_LEVEL_TABLE{HREL_LEVEL_NAME, HREL_LEVEL::kKernels<float>, HREL_LEVEL::kKernels<double>};

}  // namespace hrel::cpu
