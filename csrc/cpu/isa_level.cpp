// The kernels of one ISA level. Compiled once per level, with HREL_LEVEL its namespace and HREL_LEVEL_NAME its name;
// all code below it lives in that namespace or is always inlined, so that no instruction of one level gets into
// another. SPDX-License-Identifier: MIT
#include "cpu/alignment.h"
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

template <class Scalar>
bool takes_eigenvalues(RelevanceProblem<Scalar> const& problem) {
  return problem.order.spectrum == Spectrum::kEigenvalues;
}

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
  using Native = typename NativePack<Scalar>::Type;
  using Problem = RelevanceProblem<Scalar>;

  static Index num_tasks(Problem const& problem) {
    Index const filters = problem.acts.num_filters;
    return takes_eigenvalues(problem) ? groups_of<DoublePack>(filters) : groups_of<Native>(filters);
  }

  template <class Pack>
  static Index bytes(Problem const& problem) {
    Scratch memory{nullptr};
    RelevanceScratch<Pack>(memory, problem.acts.num_samples);
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
    int const members = members_of<Pack>(task, problem.acts.num_filters);
    relevance_of_group<Pack>(problem, task * kLanes, members, Scratch{scratch}, doubtful);
    for (int lane = 0; lane < members; ++lane) {
      if (!doubtful[lane]) continue;
      Problem exact = problem;
      exact.order.spectrum = Spectrum::kEigenvalues;
      bool never[Lanes<DoublePack>::kCount] = {};
      relevance_of_group<DoublePack>(exact, task * kLanes + lane, 1, Scratch{scratch}, never);
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
    memory.take<Pack>(triangle_elements(n));
    memory.take<Pack>(staging_elements(n));
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
    Index const n = layer.problem.acts.num_samples;
    Scratch memory{nullptr};
    memory.take<Pack>(triangle_elements(n));
    memory.take<Pack>(staging_elements(n));
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

  static Index num_tasks(Problem const& layer) { return groups_of<Pack>(layer.problem.num_widths); }

  static Index scratch_bytes(Problem const& layer) {
    Scratch memory{nullptr};
    memory.take<Pack>(triangle_elements(layer.problem.acts.num_samples));
    return memory.used;
  }

  static void run(Problem const& layer, Index task, std::byte* scratch) {
    alignment_of_widths<Pack>(layer.problem, layer.distances, task * Lanes<Pack>::kCount,
                              members_of<Pack>(task, layer.problem.num_widths), Scratch{scratch});
  }

  static constexpr Kernel<Problem> kKernel{num_tasks, scratch_bytes, run};
};

template <class Scalar>
constexpr LevelKernels<Scalar> kKernels{Relevance<Scalar>::kKernel, FilterAlignment<Scalar>::kKernel,
                                        LayerDistances<Scalar>::kKernel, LayerWidths<Scalar>::kKernel};

}  // namespace
}  // namespace HREL_LEVEL

extern Level const HREL_LEVEL_TABLE;
Level const HREL_LEVEL_TABLE{HREL_LEVEL_NAME, HREL_LEVEL::kKernels<float>, HREL_LEVEL::kKernels<double>};

}  // namespace hrel::cpu
