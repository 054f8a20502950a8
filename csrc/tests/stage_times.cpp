// How long each step of the relevance takes at one ISA level, on one thread, and what the processor can do at most;
// JSON on stdout, times in seconds.
//   stage_times stages SAMPLES FILTERS FEATURES CLASSES SECONDS     medians over as many passes as fit in SECONDS
//   stage_times ceilings THREADS     multiply-adds in registers (two operations each) and bytes read from memory
// SPDX-License-Identifier: MIT
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "cpu/launch.h"
#include "cpu/relevance.h"
#include "tests/problems.h"

namespace hrel::cpu {
namespace HREL_LEVEL {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

// --- Stages ----------------------------------------------------------------------------------------------------------

enum Stage { kDistances, kExp, kJoint, kReduction, kTrace, kStages };
constexpr char const* kStageNames[kStages] = {"distances", "exp", "joint", "reduction", "trace"};

// relevance_of_groups with a look at the clock between its steps.
void add_stages_of_group(RelevanceProblem<float> const& problem, Index first_filter, int num_filters, Scratch memory,
                         double* seconds) {
  constexpr int kLanes = Lanes<FloatPack>::kCount;
  Index const n = problem.acts.num_samples;
  RelevanceScratch<FloatPack> const s(memory, problem.acts);
  RelevanceGroup<float, FloatPack> const group =
      relevance_group(problem.acts, problem.sigma, first_filter, num_filters, s.triangle);
  double joint[kLanes], own[kLanes];
  bool doubtful[kLanes] = {};

  Clock::time_point start = Clock::now();
  auto const end = [&](Stage stage) {
    seconds[stage] += seconds_since(start);
    start = Clock::now();
  };
  squared_distances(&group.distances, 1, problem.labels.order, s.distances);
  end(kDistances);
  centred_gaussian(s.triangle, n, group.rate);
  end(kExp);
  reduce_class_blocks(problem.labels, s);
  end(kJoint);
  entropies_of_bands(problem.order, s, num_filters, joint, doubtful);
  end(kTrace);
  pentadiagonalise(s.triangle, s.bands, splat<FloatPack>(1), s.reduction);
  end(kReduction);
  entropies_of_bands(problem.order, s, num_filters, own, doubtful);
  end(kTrace);
  for (int lane = 0; lane < num_filters; ++lane) {
    problem.entropy[first_filter + lane] = static_cast<float>(own[lane]);
    problem.joint_entropy[first_filter + lane] = static_cast<float>(joint[lane]);
  }
}

int stages(Index samples, Index filters, Index features, int classes, double limit, Level const& level) {
  test::Layer<float> layer(samples, filters, features, classes, test::Data::kRectified, 1787);
  layer.sigma.assign(layer.sigma.size(), std::sqrt(static_cast<float>(features)));  // near the mean distance
  RelevanceProblem<float> const problem = layer.problem(test::kOrder101);
  Scratch counted{nullptr};
  RelevanceScratch<FloatPack>(counted, problem.acts);
  std::vector<std::byte> memory(counted.used + kScratchAlignment);
  std::uintptr_t const address = reinterpret_cast<std::uintptr_t>(memory.data());
  std::byte* const aligned = memory.data() + (kScratchAlignment - address % kScratchAlignment) % kScratchAlignment;

  auto const pass = [&](double* seconds) {
    constexpr int kLanes = Lanes<FloatPack>::kCount;
    for (Index first = 0; first < filters; first += kLanes) {
      add_stages_of_group(problem, first, static_cast<int>(std::min<Index>(filters - first, kLanes)), Scratch{aligned},
                          seconds);
    }
  };
  double warm_up[kStages] = {};
  pass(warm_up);
  std::vector<float> const entropy = layer.entropy, joint = layer.joint;
  relevance(problem, NumThreads{1}, level);
  if (entropy != layer.entropy || joint != layer.joint) {  // what is timed here must be what the product does
    std::fprintf(stderr, "stage_times: the steps do not give what cpu::relevance gives\n");
    return 1;
  }

  std::vector<double> of_stage[kStages], whole;
  for (Clock::time_point const start = Clock::now(); whole.size() < 3 || seconds_since(start) < limit;) {
    double seconds[kStages] = {};
    pass(seconds);
    for (int stage = 0; stage < kStages; ++stage) of_stage[stage].push_back(seconds[stage]);
    Clock::time_point const whole_start = Clock::now();
    relevance(problem, NumThreads{1}, level);
    whole.push_back(seconds_since(whole_start));
  }
  std::printf("{\"passes\": %zu, \"whole\": %.9g, \"class_sizes\": [", whole.size(), median(whole));
  for (Index c = 0; layer.offsets[c] < samples; ++c) {
    std::printf("%s%lld", c == 0 ? "" : ", ", static_cast<long long>(layer.offsets[c + 1] - layer.offsets[c]));
  }
  std::printf("], \"stages\": {");
  for (int stage = 0; stage < kStages; ++stage) {
    std::printf("%s\"%s\": %.9g", stage == 0 ? "" : ", ", kStageNames[stage], median(of_stage[stage]));
  }
  std::printf("}}\n");
  return 0;
}

// --- Ceilings --------------------------------------------------------------------------------------------------------

typedef float Floats16 __attribute__((vector_size(16)));
typedef float Floats32 __attribute__((vector_size(32)));
typedef float Floats64 __attribute__((vector_size(64)));

constexpr int kTries = 7;  // the best counts: a ceiling is what nothing disturbed
double volatile sink;      // keeps what is computed

// Seconds until all threads have run work(thread).
template <class Work>
double best_seconds(int threads, Work const& work) {
  double best = 1e30;
  for (int round = 0; round < kTries; ++round) {
    Clock::time_point const start = Clock::now();
    {
      std::vector<std::jthread> team;
      for (int thread = 1; thread < threads; ++thread) team.emplace_back([&work, thread] { work(thread); });
      work(0);
    }
    best = std::min(best, seconds_since(start));
  }
  return best;
}

template <class Floats>
double flops_per_second(int threads) {
  constexpr int kChains = 12;  // independent: hides the latency, fits 16 registers with the two factors
  constexpr long kSteps = 10'000'000;
  double const volatile one = 1;
  double const seconds = best_seconds(threads, [&](int) {
    Floats const factor = Floats{} + static_cast<float>(0.999 * one), term = Floats{} + static_cast<float>(one);
    Floats sum[kChains];  // each from a value of its own, or the compiler would keep one of them
    for (Floats& chain : sum) chain = Floats{} + static_cast<float>(one);
    for (long step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
      for (int k = 0; k < kChains; ++k) sum[k] = sum[k] * factor + term;
    }
    for (Floats const& chain : sum) sink = chain[0];
  });
  return 2.0 * kChains * kSteps * (sizeof(Floats) / sizeof(float)) * threads / seconds;
}

template <class Floats>
double bytes_per_second(int threads) {
  constexpr std::size_t kBytes = std::size_t{256} << 20;  // beyond any cache
  std::size_t const packs = kBytes / sizeof(Floats) / static_cast<std::size_t>(threads);
  std::vector<std::byte> memory(kBytes + sizeof(Floats));
  std::uintptr_t const address = reinterpret_cast<std::uintptr_t>(memory.data());
  Floats const* const values =
      reinterpret_cast<Floats const*>(memory.data() + (sizeof(Floats) - address % sizeof(Floats)) % sizeof(Floats));
  double const seconds = best_seconds(threads, [&](int thread) {
    Floats const* const mine = values + static_cast<std::size_t>(thread) * packs;
    Floats sum[8] = {};
    for (std::size_t q = 0; q + 8 <= packs; q += 8) {
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) sum[k] += mine[q + static_cast<std::size_t>(k)];
    }
    for (Floats const& part : sum) sink = part[0];
  });
  return static_cast<double>(packs * sizeof(Floats)) * threads / seconds;
}

int ceilings(int threads) {
  double flops = flops_per_second<Floats16>(threads), bytes = bytes_per_second<Floats16>(threads);
#if defined(__AVX2__)
  flops = std::max(flops, flops_per_second<Floats32>(threads));
  bytes = std::max(bytes, bytes_per_second<Floats32>(threads));
#endif
#if defined(__AVX512F__)
  flops = std::max(flops, flops_per_second<Floats64>(threads));
  bytes = std::max(bytes, bytes_per_second<Floats64>(threads));
#endif
  std::printf("{\"threads\": %d, \"fma_flops_per_s\": %.6g, \"bandwidth_bytes_per_s\": %.6g}\n", threads, flops, bytes);
  return 0;
}

}  // namespace
}  // namespace HREL_LEVEL
}  // namespace hrel::cpu

int main(int count, char** arguments) {
  using namespace hrel::cpu;
  std::string const what = count > 1 ? arguments[1] : "";
  if (what == "ceilings" && count == 3) return HREL_LEVEL::ceilings(std::atoi(arguments[2]));
  if (what == "stages" && count == 7) {
    for (Level const* level : usable_levels()) {
      if (std::strcmp(level->name, HREL_LEVEL_NAME) == 0) {
        return HREL_LEVEL::stages(std::atoi(arguments[2]), std::atoi(arguments[3]), std::atoi(arguments[4]),
                                  std::atoi(arguments[5]), std::atof(arguments[6]), *level);
      }
    }
    std::fprintf(stderr, "stage_times: this processor does not run %s\n", HREL_LEVEL_NAME);
    return 1;
  }
  std::fprintf(stderr, "stage_times takes stages SAMPLES FILTERS FEATURES CLASSES SECONDS, or ceilings THREADS\n");
  return 2;
}
