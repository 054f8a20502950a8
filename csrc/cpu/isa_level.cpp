// The kernels of one ISA level. Compiled once per level, with HREL_LEVEL its namespace and HREL_LEVEL_NAME its name;
// all code below it lives in that namespace or is always inlined, so that no instruction of one level gets into
// another. SPDX-License-Identifier: MIT
#include <type_traits>

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

// Groups of at most one member a lane. The fewest that do, as a group takes its time however few its members are; but
// long maps are read one after the other, so there all threads get their share of them.
template <class Pack>
Index num_groups(Index count, bool members_take_turns, Index num_threads) {
  Index const width = Lanes<Pack>::kCount * (members_take_turns ? num_threads : 1);
  Index const groups = (count + width - 1) / width * (width / Lanes<Pack>::kCount);
  return groups < count ? groups : count;
}

struct Members {
  Index first;
  int count;
};

Members members_of(Index group, Index num_groups, Index count) {
  Index const first = group * count / num_groups;
  return {first, static_cast<int>((group + 1) * count / num_groups - first)};
}

template <class Scalar>
struct Relevance {
  using Problem = RelevanceProblem<Scalar>;
  template <class Pack>
  using GroupScratch = RelevanceScratch<Pack>;

  static Index count(Problem const& problem) { return problem.acts.num_filters; }
  static Index num_samples(Problem const& problem) { return problem.acts.num_samples; }
  static ActivationView<Scalar> const& operand(Problem const& problem) { return problem.acts; }
  static bool members_take_turns(Problem const& problem) { return has_long_maps(problem.acts); }

  template <class Pack>
  static void run(Problem const& problem, Index first, int members, Scratch memory, bool* doubtful) {
    relevance_of_group<Pack>(problem, first, members, memory, doubtful);
  }
};

template <class Scalar>
struct Permutations {
  using Problem = PermutationProblem<Scalar>;
  template <class Pack>
  using GroupScratch = RelevanceScratch<Pack>;

  static Index count(Problem const& problem) { return problem.acts.num_filters; }
  static Index num_samples(Problem const& problem) { return problem.acts.num_samples; }
  static ActivationView<Scalar> const& operand(Problem const& problem) { return problem.acts; }
  static bool members_take_turns(Problem const&) { return false; }  // the distances are little of the work

  template <class Pack>
  static void run(Problem const& problem, Index first, int members, Scratch memory, bool* doubtful) {
    permutations_of_group<Pack>(problem, first, members, memory, doubtful);
  }
};

template <class Scalar>
struct MatrixEntropy {
  using Problem = EntropyProblem<Scalar>;
  template <class Pack>
  using GroupScratch = EntropyScratch<Pack>;

  static Index count(Problem const& problem) { return problem.gram.num_matrices; }
  static Index num_samples(Problem const& problem) { return problem.gram.size; }
  static Index operand(Problem const& problem) { return num_samples(problem); }
  static bool members_take_turns(Problem const&) { return false; }

  template <class Pack>
  static void run(Problem const& problem, Index first, int members, Scratch memory, bool* doubtful) {
    entropy_of_group<Pack>(problem, first, members, memory, doubtful);
  }
};

// Entropies of a group of filters or matrices; those that turn out doubtful once more, alone, by eigenvalues.
template <class Scalar, class Group>
struct Entropies {
  using Native = typename NativePack<Scalar>::Type;
  using Wide = WidePack<Native>;
  using Problem = typename Group::Problem;
  static constexpr bool kHasWide = !std::is_same_v<Native, Wide>;

  static bool takes_eigenvalues(Problem const& problem) { return problem.order.spectrum == Spectrum::kEigenvalues; }

  static Tasks tasks(Problem const& problem, Machine const& machine) {
    Index const count = Group::count(problem), threads = machine.num_threads;
    bool const in_turn = Group::members_take_turns(problem);
    if (takes_eigenvalues(problem)) return {num_groups<DoublePack>(count, in_turn, threads)};
    Index const narrow = num_groups<Native>(count, in_turn, threads);
    if constexpr (kHasWide) {
      Index const wide = num_groups<Wide>(count, in_turn, threads);
      Index const triangle = triangle_elements(Group::num_samples(problem)) * static_cast<Index>(sizeof(Wide));
      auto const rounds = [&](Index groups) { return (groups + threads - 1) / threads; };
      // A wide group takes half as long again as a narrow one, as far as the cache holds it beside the rest.
      if (3 * rounds(wide) < 2 * rounds(narrow) && 2 * triangle <= machine.cache_bytes) return {wide, true};
    }
    return {narrow};
  }

  template <class Pack>
  static Index bytes(Problem const& problem) {
    Scratch memory{nullptr};
    typename Group::template GroupScratch<Pack>(memory, Group::operand(problem));
    return memory.used;
  }

  static Index scratch_bytes(Problem const& problem, Tasks const& tasks) {
    Index const doubles = bytes<DoublePack>(problem);
    Index const natives = tasks.wide_packs ? bytes<Wide>(problem) : bytes<Native>(problem);
    return doubles > natives ? doubles : natives;
  }

  template <class Pack>
  static void run_group(Problem const& problem, Members members, std::byte* scratch) {
    bool doubtful[Lanes<Pack>::kCount] = {};
    Group::template run<Pack>(problem, members.first, members.count, Scratch{scratch}, doubtful);
    for (int lane = 0; lane < members.count; ++lane) {
      if (!doubtful[lane]) continue;
      Problem exact = problem;
      exact.order.spectrum = Spectrum::kEigenvalues;
      bool never[Lanes<DoublePack>::kCount] = {};
      Group::template run<DoublePack>(exact, members.first + lane, 1, Scratch{scratch}, never);
    }
  }

  static void run(Problem const& problem, Index task, Tasks const& tasks, std::byte* scratch) {
    Members const members = members_of(task, tasks.count, Group::count(problem));
    if (takes_eigenvalues(problem)) return run_group<DoublePack>(problem, members, scratch);
    if constexpr (kHasWide) {
      if (tasks.wide_packs) return run_group<Wide>(problem, members, scratch);
    }
    run_group<Native>(problem, members, scratch);
  }

  static constexpr Kernel<Problem> kKernel{tasks, scratch_bytes, run};
};

template <class Scalar>
struct FilterAlignment {
  using Pack = typename NativePack<Scalar>::Type;
  using Problem = AlignmentProblem<Scalar>;

  static Tasks tasks(Problem const& problem, Machine const& machine) {
    return {num_groups<Pack>(problem.acts.num_filters, has_long_maps(problem.acts), machine.num_threads)};
  }

  static Index scratch_bytes(Problem const& problem, Tasks const&) {
    Index const n = problem.acts.num_samples;
    Scratch memory{nullptr};
    memory.take<Pack>(triangle_elements(n));
    DistanceScratch<Pack>(memory, problem.acts);
    AlignmentScratch<Scalar>{memory};
    return memory.used;
  }

  static void run(Problem const& problem, Index task, Tasks const& tasks, std::byte* scratch) {
    Members const members = members_of(task, tasks.count, problem.acts.num_filters);
    alignment_of_group<Pack>(problem, members.first, members.count, Scratch{scratch});
  }

  static constexpr Kernel<Problem> kKernel{tasks, scratch_bytes, run};
};

template <class Scalar>
struct LayerDistances {
  using Pack = typename NativePack<Scalar>::Type;
  using Problem = LayerAlignment<Scalar>;

  static Tasks tasks(Problem const& layer, Machine const&) { return {layer.num_slices}; }

  static Index scratch_bytes(Problem const& layer, Tasks const&) {
    Scratch memory{nullptr};
    MapScratch<Pack>(memory, layer.problem.acts.num_samples);
    return memory.used;
  }

  static void run(Problem const& layer, Index task, Tasks const&, std::byte* scratch) {
    ActivationView<Scalar> const& acts = layer.problem.acts;
    Index const values = acts.num_filters * acts.num_features;
    distances_of_slice<Pack>(acts, layer.problem.labels.order, task * values / layer.num_slices,
                             (task + 1) * values / layer.num_slices,
                             layer.slices + task * triangle_elements(acts.num_samples), Scratch{scratch});
  }

  static constexpr Kernel<Problem> kKernel{tasks, scratch_bytes, run};
};

template <class Scalar>
struct LayerWidths {
  using Pack = typename NativePack<Scalar>::Type;
  using Problem = LayerAlignment<Scalar>;

  static Tasks tasks(Problem const&, Machine const&) { return {1}; }

  static Index scratch_bytes(Problem const&, Tasks const&) {
    Scratch memory{nullptr};
    AlignmentScratch<Scalar>{memory};
    return memory.used;
  }

  static void run(Problem const& layer, Index, Tasks const&, std::byte* scratch) {
    AlignmentProblem<Scalar> const& problem = layer.problem;
    Scratch memory{scratch};
    double const mean_distance = problem.mean_distance[0];
    auto const squared_distance = [&](Index offset) __attribute__((always_inline)) { return layer.distances[offset]; };
    alignment_of_kernels<Pack>(problem.labels, problem.acts.num_samples, problem.multiples, problem.num_widths, 1,
                               &mean_distance, elements_in_lanes<Pack>(squared_distance),
                               AlignmentScratch<Scalar>(memory), problem.alignment);
  }

  static constexpr Kernel<Problem> kKernel{tasks, scratch_bytes, run};
};

template <class Scalar>
constexpr LevelKernels<Scalar> kKernels{Entropies<Scalar, Relevance<Scalar>>::kKernel,
                                        Entropies<Scalar, Permutations<Scalar>>::kKernel,
                                        Entropies<Scalar, MatrixEntropy<Scalar>>::kKernel,
                                        FilterAlignment<Scalar>::kKernel,
                                        LayerDistances<Scalar>::kKernel,
                                        LayerWidths<Scalar>::kKernel};

}  // namespace
}  // namespace HREL_LEVEL

extern Level const HREL_LEVEL_TABLE;
Level const HREL_LEVEL_TABLE{HREL_LEVEL_NAME, HREL_LEVEL::kKernels<float>, HREL_LEVEL::kKernels<double>};

}  // namespace hrel::cpu
