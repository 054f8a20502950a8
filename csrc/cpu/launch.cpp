// Picks the ISA level and shares the tasks of a kernel among threads.
// SPDX-License-Identifier: MIT
#include "cpu/launch.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <thread>
#include <vector>

#include "cpu/triangle.h"
#include "numerics/entropy.h"
#if defined(__linux__)
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace hrel::cpu {
namespace {

struct AlignedDelete {
  void operator()(std::byte* memory) const { ::operator delete[](memory, std::align_val_t{kScratchAlignment}); }
};
using AlignedBytes = std::unique_ptr<std::byte[], AlignedDelete>;

// What the bindings turn into Python's MemoryError, with its message.
class OutOfMemory : public std::bad_alloc {
 public:
  OutOfMemory(Index bytes_each, Index count) {
    std::snprintf(message_, sizeof message_,
                  "matrices of N x N need %.0f bytes in all, %lld for each of %lld threads or slices, more than there "
                  "are: take fewer samples N, or fewer threads",
                  static_cast<double>(bytes_each) * static_cast<double>(count), static_cast<long long>(bytes_each),
                  static_cast<long long>(count));
  }
  char const* what() const noexcept override { return message_; }

 private:
  char message_[224];
};

// Before anything is allocated: where memory is overcommitted, too large a piece is granted, and its first use kills.
void check_fits(Index bytes_each, Index count) {
#if defined(__linux__)
  static double const physical =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  if (static_cast<double>(bytes_each) * static_cast<double>(count) > physical) throw OutOfMemory(bytes_each, count);
#endif
}

#if defined(__linux__)
pid_t const kProcess = getpid();  // that loaded this library
#endif

// Calls work() on `count` threads, the caller's among them. PyTorch's idle workers spin for milliseconds and would keep
// threads of ours from their cores, so the work goes to them where PyTorch runs on GNU OpenMP: its entry point is found
// by name, nothing is linked. A child after fork has none of those workers and takes threads of its own.
template <class Work>
void on_threads(Index count, Work& work) {
#if defined(__linux__)
  using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static auto const parallel = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (count > 1 && parallel != nullptr && getpid() == kProcess) {
    parallel([](void* given) { (*static_cast<Work*>(given))(); }, &work, static_cast<unsigned>(count), 0);
    return;
  }
#endif
  std::vector<std::jthread> team;
  for (Index i = 1; i < count; ++i) team.emplace_back(std::ref(work));
  work();
}

// Runs every task of the kernel once. Tasks are handed out as threads become free; the first exception is rethrown
// here.
template <class Problem>
void run_tasks(Kernel<Problem> const& kernel, Problem const& problem, NumThreads threads) {
  Tasks const tasks = kernel.tasks(problem, threads.value);
  Index const num_tasks = tasks.count();
  Index const bytes = kernel.scratch_bytes(problem), count = std::min<Index>(threads.value, num_tasks);
  check_fits(bytes, count);
  std::atomic<Index> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  auto work = [&] {
    try {
      void* const memory =
          ::operator new[](static_cast<std::size_t>(bytes), std::align_val_t{kScratchAlignment}, std::nothrow);
      if (memory == nullptr) throw OutOfMemory(bytes, count);
      AlignedBytes const scratch(static_cast<std::byte*>(memory));
      for (Index task = next++; task < num_tasks; task = next++) kernel.run(problem, task, tasks, scratch.get());
    } catch (...) {
      std::lock_guard const lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = num_tasks;  // the others need not go on
    }
  };
  on_threads(count, work);
  if (failure) std::rethrow_exception(failure);
}

// From the shape alone, so that the sums, and with them the last bits, do not depend on the threads.
template <class Scalar>
Index num_slices(ActivationView<Scalar> const& acts) {
  constexpr Index kMaxSlices = 16, kMinValues = 1024, kMaxBytes = Index{64} << 20;
  Index const bytes = triangle_elements(acts.num_samples) * static_cast<Index>(sizeof(Scalar));
  Index const by_work = acts.num_filters * acts.num_features / kMinValues;
  return std::max<Index>(1, std::min({kMaxSlices, by_work, kMaxBytes / bytes}));
}

template <class Scalar>
void layer_alignment(AlignmentProblem<Scalar> const& problem, LevelKernels<Scalar> const& kernels, NumThreads threads) {
  Index const n = problem.acts.num_samples, elements = triangle_elements(n);
  check_fits(elements * static_cast<Index>(sizeof(Scalar)), num_slices(problem.acts));
  std::vector<Scalar> slices(static_cast<std::size_t>(num_slices(problem.acts) * elements));
  LayerAlignment<Scalar> const layer{problem, num_slices(problem.acts), slices.data(), slices.data()};
  run_tasks(kernels.layer_distances, layer, threads);
  for (Index slice = 1; slice < layer.num_slices; ++slice) {
    for (Index q = 0; q < elements; ++q) slices[q] += slices[slice * elements + q];
  }
  problem.mean_distance[0] = static_cast<Scalar>(mean_distance(n, [&](Index offset) { return slices[offset]; }));
  run_tasks(kernels.layer_alignment, layer, threads);
}

template <class Scalar>
void alignment(AlignmentProblem<Scalar> const& problem, LevelKernels<Scalar> const& kernels, NumThreads threads) {
  if (problem.per_filter) {
    run_tasks(kernels.filter_alignment, problem, threads);
  } else {
    layer_alignment(problem, kernels, threads);
  }
}

// Labels as they come, sorted.
struct Classes {
  Classes(Index const* labels, Index num_samples)
      : order(static_cast<std::size_t>(num_samples)), class_offsets(order.size() + 1) {
    sort_by_class(labels, num_samples, order.data(), class_offsets.data(), &smallest);
  }

  template <class Scalar>
  LabelView<Scalar> view() const {
    return {order.data(), class_offsets.data(), nullptr};
  }

  std::vector<Index> order;          // [N]
  std::vector<Index> class_offsets;  // [N + 1]
  Index smallest;
};

template <class Scalar>
bool terms(TermsProblem<Scalar> const& problem, NumThreads threads, Level const& level) {
  Index const n = problem.acts.num_samples, num_filters = problem.acts.num_filters;
  Classes const classes(problem.labels, n);
  bool proper = classes.smallest >= 0;
  for (Index f = 0; f < num_filters; ++f) proper = proper && problem.sigma[f] > 0 && std::isfinite(problem.sigma[f]);
  if (!proper) return false;
  std::vector<double> shares;  // [C] of the samples: the eigenvalues of B that are not 0
  for (std::size_t c = 0; classes.class_offsets[c] < n; ++c) {
    shares.push_back(static_cast<double>(classes.class_offsets[c + 1] - classes.class_offsets[c]) /
                     static_cast<double>(n));
  }
  Scalar const label_entropy = static_cast<Scalar>(
      entropy_bits_of_eigenvalues(shares.data(), static_cast<Index>(shares.size()), problem.order.alpha));
  relevance(
      {problem.acts, classes.view<Scalar>(), problem.sigma, problem.order, problem.entropy, problem.joint_entropy},
      threads, level);
  for (Index f = 0; f < num_filters; ++f) {
    problem.relevance[f] = problem.entropy[f] - problem.joint_entropy[f] + label_entropy;
    proper = proper && !std::isnan(problem.entropy[f]);
  }
  *problem.label_entropy = label_entropy;
  return proper;
}

template <class Scalar>
bool width(WidthProblem<Scalar> const& problem, NumThreads threads, Level const& level) {
  Classes const classes(problem.labels, problem.acts.num_samples);
  if (classes.smallest < 0) return false;
  Index const rows = problem.per_filter ? problem.acts.num_filters : 1, num_widths = problem.num_widths;
  std::vector<Scalar> alignment(static_cast<std::size_t>(rows * num_widths));  // [R, M]
  kernel_alignment({problem.acts, classes.view<Scalar>(), problem.multiples, num_widths, problem.per_filter,
                    problem.mean_distance, alignment.data()},
                   threads, level);
  for (Index r = 0; r < rows; ++r) {
    Scalar const* const row = alignment.data() + r * num_widths;
    problem.width[r] = problem.multiples[std::max_element(row, row + num_widths) - row] * problem.mean_distance[r];
  }
  return true;
}

}  // namespace

std::vector<Level const*> usable_levels() {
  std::vector<Level const*> levels;
#if defined(HREL_X86_LEVELS)
  bool const v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
  bool const v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd");
  if (v4) levels.push_back(&kLevelV4);
  if (v3) levels.push_back(&kLevelV3);
#endif
  levels.push_back(&kLevelBaseline);
  return levels;
}

std::vector<char const*> built_levels() {
#if defined(HREL_X86_LEVELS)
  return {kLevelV4.name, kLevelV3.name, kLevelBaseline.name};
#else
  return {kLevelBaseline.name};
#endif
}

void sort_by_class(Index const* labels, Index num_samples, Index* order, Index* class_offsets, Index* smallest) {
  std::iota(order, order + num_samples, Index{0});
  std::stable_sort(order, order + num_samples, [&](Index a, Index b) { return labels[a] < labels[b]; });
  Index classes = 0;
  for (Index k = 0; k < num_samples; ++k) {
    if (k == 0 || labels[order[k]] != labels[order[k - 1]]) class_offsets[classes++] = k;
  }
  std::fill(class_offsets + classes, class_offsets + num_samples + 1, num_samples);
  smallest[0] = labels[order[0]];
}

void relevance(RelevanceProblem<float> const& problem, NumThreads threads, Level const& level) {
  run_tasks(level.float_kernels.relevance, problem, threads);
}

void relevance(RelevanceProblem<double> const& problem, NumThreads threads, Level const& level) {
  run_tasks(level.double_kernels.relevance, problem, threads);
}

bool relevance_terms(TermsProblem<float> const& problem, NumThreads threads, Level const& level) {
  return terms(problem, threads, level);
}

bool relevance_terms(TermsProblem<double> const& problem, NumThreads threads, Level const& level) {
  return terms(problem, threads, level);
}

void permuted_joint_entropy(PermutationProblem<float> const& problem, NumThreads threads, Level const& level) {
  run_tasks(level.float_kernels.permuted_joint_entropy, problem, threads);
}

void permuted_joint_entropy(PermutationProblem<double> const& problem, NumThreads threads, Level const& level) {
  run_tasks(level.double_kernels.permuted_joint_entropy, problem, threads);
}

void matrix_entropy(EntropyProblem<float> const& problem, NumThreads threads, Level const& level) {
  run_tasks(level.float_kernels.matrix_entropy, problem, threads);
}

void matrix_entropy(EntropyProblem<double> const& problem, NumThreads threads, Level const& level) {
  run_tasks(level.double_kernels.matrix_entropy, problem, threads);
}

void kernel_alignment(AlignmentProblem<float> const& problem, NumThreads threads, Level const& level) {
  alignment(problem, level.float_kernels, threads);
}

void kernel_alignment(AlignmentProblem<double> const& problem, NumThreads threads, Level const& level) {
  alignment(problem, level.double_kernels, threads);
}

bool kernel_width(WidthProblem<float> const& problem, NumThreads threads, Level const& level) {
  return width(problem, threads, level);
}

bool kernel_width(WidthProblem<double> const& problem, NumThreads threads, Level const& level) {
  return width(problem, threads, level);
}

}  // namespace hrel::cpu
