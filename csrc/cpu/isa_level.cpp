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

// How the maps of a problem are read.
struct Reading {
  bool in_turn = false;     // one filter after the other
  int groups_in_turns = 1;  // at most so many groups of filters together
};

template <class Scalar>
Reading reading_of(ActivationView<Scalar> const& acts) {
  return {has_long_maps(acts), groups_in_turns(acts)};
}

// Of groups of at most one member a lane. Full ones as far as all threads get as many. The rest goes to half groups, if
// every thread has at most one of them, or to the fewest groups that do, as a group takes its time however few its
// members are; but where maps are read one after the other, all threads get their share of it. Groups in turns are one
// task, if every thread has several.
template <class Pack>
Tasks tasks_of(Index count, Reading const& reading, Index num_threads) {
  constexpr Index kLanes = Lanes<Pack>::kCount, kHalf = Lanes<HalfPack<Pack>>::kCount;
  Index const share = count / (kLanes * num_threads);
  if (share > 1 && reading.groups_in_turns > 1) {
    Index const together = kLanes * num_threads * (share < reading.groups_in_turns ? share : reading.groups_in_turns);
    return {0, (count + together - 1) / together * num_threads};
  }
  Index const rest = count - share * num_threads * kLanes;
  Index const groups = (rest + kLanes - 1) / kLanes, halves = (rest + kHalf - 1) / kHalf;
  Index const by_all = rest < num_threads ? rest : num_threads;
  return {share * num_threads, reading.in_turn ? by_all : halves <= num_threads ? halves : groups};
}

struct Members {
  Index first;
  int count;
};

template <class Pack>
Members members_of(Index task, Tasks const& tasks, Index count) {
  constexpr Index kLanes = Lanes<Pack>::kCount;
  if (task < tasks.num_full) return {task * kLanes, static_cast<int>(kLanes)};
  Index const other = task - tasks.num_full, before = tasks.num_full * kLanes, rest = count - before;
  Index const first = other * rest / tasks.num_others;
  return {before + first, static_cast<int>((other + 1) * rest / tasks.num_others - first)};
}

template <class Scalar>
struct Relevance {
  using Problem = RelevanceProblem<Scalar>;
  template <class Pack>
  using GroupScratch = RelevanceScratch<Pack>;

  static Index count(Problem const& problem) { return problem.acts.num_filters; }
  static ActivationView<Scalar> const& operand(Problem const& problem) { return problem.acts; }
  static Reading reading(Problem const& problem) { return reading_of(problem.acts); }

  template <class Pack>
  static void run(Problem const& problem, Index first, int members, Scratch memory, bool* doubtful) {
    relevance_of_groups<Pack>(problem, first, members, memory, doubtful);
  }
};

template <class Scalar>
struct Permutations {
  using Problem = PermutationProblem<Scalar>;
  template <class Pack>
  using GroupScratch = RelevanceScratch<Pack>;

  static Index count(Problem const& problem) { return problem.acts.num_filters; }
  static ActivationView<Scalar> const& operand(Problem const& problem) { return problem.acts; }
  static Reading reading(Problem const& problem) {
    return {false, groups_in_turns(problem.acts)};  // the distances are little of the work
  }

  template <class Pack>
  static void run(Problem const& problem, Index first, int members, Scratch memory, bool* doubtful) {
    permutations_of_groups<Pack>(problem, first, members, memory, doubtful);
  }
};

template <class Scalar>
struct MatrixEntropy {
  using Problem = EntropyProblem<Scalar>;
  template <class Pack>
  using GroupScratch = EntropyScratch<Pack>;

  static Index count(Problem const& problem) { return problem.gram.num_matrices; }
  static Index operand(Problem const& problem) { return problem.gram.size; }
  static Reading reading(Problem const&) { return {}; }

  template <class Pack>
  static void run(Problem const& problem, Index first, int members, Scratch memory, bool* doubtful) {
    entropy_of_group<Pack>(problem, first, members, memory, doubtful);
  }
};

// Entropies of a group of filters or matrices; those that turn out doubtful once more, alone, by eigenvalues.
template <class Scalar, class Group>
struct Entropies {
  using Native = typename NativePack<Scalar>::Type;
  using Half = HalfPack<Native>;
  using Problem = typename Group::Problem;

  static bool takes_eigenvalues(Problem const& problem) { return problem.order.spectrum == Spectrum::kEigenvalues; }

  static Tasks tasks(Problem const& problem, Index num_threads) {
    Index const count = Group::count(problem);
    Reading const reading = Group::reading(problem);
    return takes_eigenvalues(problem) ? tasks_of<DoublePack>(count, reading, num_threads)
                                      : tasks_of<Native>(count, reading, num_threads);
  }

  template <class Pack>
  static Index bytes(Problem const& problem) {
    Scratch memory{nullptr};
    typename Group::template GroupScratch<Pack>(memory, Group::operand(problem));
    return memory.used;
  }

  static Index scratch_bytes(Problem const& problem) {
    Index const doubles = bytes<DoublePack>(problem), natives = bytes<Native>(problem);
    return doubles > natives ? doubles : natives;
  }

  template <class Pack>
  static void run_group(Problem const& problem, Members members, std::byte* scratch) {
    bool doubtful[Lanes<Pack>::kCount * kGroupsInTurns] = {};
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
    Index const count = Group::count(problem);
    Members const exact = members_of<DoublePack>(task, tasks, count), members = members_of<Native>(task, tasks, count);
    if (takes_eigenvalues(problem)) {
      run_group<DoublePack>(problem, exact, scratch);
    } else if (members.count <= Lanes<Half>::kCount) {
      run_group<Half>(problem, members, scratch);
    } else {
      run_group<Native>(problem, members, scratch);
    }
  }

  static constexpr Kernel<Problem> kKernel{tasks, scratch_bytes, run};
};

template <class Scalar>
struct FilterAlignment {
  using Pack = typename NativePack<Scalar>::Type;
  using Half = HalfPack<Pack>;
  using Problem = AlignmentProblem<Scalar>;

  static Tasks tasks(Problem const& problem, Index num_threads) {
    return tasks_of<Pack>(problem.acts.num_filters, reading_of(problem.acts), num_threads);
  }

  static Index scratch_bytes(Problem const& problem) {
    Scratch memory{nullptr};
    FilterAlignmentScratch<Pack>(memory, problem.acts);
    return memory.used;
  }

  static void run(Problem const& problem, Index task, Tasks const& tasks, std::byte* scratch) {
    Members const members = members_of<Pack>(task, tasks, problem.acts.num_filters);
    if (members.count <= Lanes<Half>::kCount) {
      alignment_of_groups<Half>(problem, members.first, members.count, Scratch{scratch});
    } else {
      alignment_of_groups<Pack>(problem, members.first, members.count, Scratch{scratch});
    }
  }

  static constexpr Kernel<Problem> kKernel{tasks, scratch_bytes, run};
};

template <class Scalar>
struct LayerDistances {
  using Pack = typename NativePack<Scalar>::Type;
  using Problem = LayerAlignment<Scalar>;

  static Tasks tasks(Problem const& layer, Index) { return {0, layer.num_slices}; }

  static Index scratch_bytes(Problem const& layer) {
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

  static Tasks tasks(Problem const&, Index) { return {0, 1}; }

  static Index scratch_bytes(Problem const&) {
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
