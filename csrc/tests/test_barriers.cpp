// Mutation test of the kernels: with any one barrier deleted, their results must be wrong on the emulator. A barrier
// that could go unnoticed would be one that nothing needs, or a sign that the tests cannot see races.
// SPDX-License-Identifier: MIT
#include "tests/emulated.h"
// Not sorted: the emulator comes first.
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>

#include "tests/problems.h"

namespace hrel {
namespace {

using namespace test;

constexpr unsigned kSchedules = 6;  // tried before a mutant counts as a survivor

// A small problem: runs under a schedule and returns its results.
using Run = std::function<std::vector<double>(emulator::Schedule const&)>;

template <class Scalar>
Run relevance_of(Layer<Scalar> layer, EntropyOrder const& order) {
  return [layer, order](emulator::Schedule const& schedule) mutable {
    std::fill(layer.entropy.begin(), layer.entropy.end(), Scalar(-1));
    std::fill(layer.joint.begin(), layer.joint.end(), Scalar(-1));
    double const left = static_cast<double>(run(layer.problem(order), schedule));
    std::vector<double> results(layer.entropy.begin(), layer.entropy.end());
    results.insert(results.end(), layer.joint.begin(), layer.joint.end());
    results.push_back(left);
    return results;
  };
}

// A small entropy has fine bits, in which products and the differences that take over differ.
Layer<float> wide(Layer<float> layer) {
  for (float& sigma : layer.sigma) sigma *= 4;
  return layer;
}

// A small class before one that is too large for the registers.
Layer<float> lopsided(Layer<float> layer) {
  layer.offsets[1] = 9;
  return layer;
}

// So narrow that products are refused.
Layer<float> narrow(Layer<float> layer) {
  for (float& sigma : layer.sigma) sigma /= 20;
  return layer;
}

template <class Scalar>
Run entropy_of_matrices(Index n) {
  Layer<double> const layer(n, 2, 4, 3, Data::kRectified, 12);
  std::vector<Scalar> gram(2 * n * n);
  for (Index k = 0; k < 2 * n * n; ++k) {
    gram[k] = static_cast<Scalar>(std::exp(-layer.squared_distance(k / (n * n), k / n % n, k % n)));
  }
  EntropyOrder const order = sizeof(Scalar) == 4 ? kOrder101 : kShannon;
  return [=](emulator::Schedule const& schedule) {
    std::vector<Scalar> entropy(2, Scalar(-1));
    double const left = static_cast<double>(
        run(EntropyProblem<Scalar>{{gram.data(), 2, n, n * n, n, 1}, order, entropy.data()}, schedule));
    return std::vector<double>{entropy[0], entropy[1], left};
  };
}

Run alignment_of(Layer<float> const& layer) {
  return [layer](emulator::Schedule const& schedule) {
    std::vector<float> const multiples{0.3F, 0.7F, 1, 1.5F, 2, 3, 5, 7, 9, 10, 20};
    std::vector<float> mean(layer.filters, -1), alignment(layer.filters * 11, -1);
    run(AlignmentProblem<float>{layer.view(), layer.label_view(), multiples.data(), 11, true, mean.data(),
                                alignment.data()},
        schedule);
    std::vector<double> results(mean.begin(), mean.end());
    results.insert(results.end(), alignment.begin(), alignment.end());
    return results;
  };
}

struct Problem {
  char const* name;
  Run run;
};

std::vector<Problem> problems() {
  auto const layer = [](Index n, Index features, int classes) {
    return Layer<float>(n, 1, features, classes, Data::kRectified, 3);
  };
  return {
      {"relevance, N = 20", relevance_of(layer(20, 11, 4), kOrder101)},
      {"relevance, N = 40, products", relevance_of(wide(layer(40, 37, 4)), kOrder101)},
      {"relevance, N = 100", relevance_of(layer(100, 19, 4), kOrder101)},
      {"relevance, N = 100, large classes", relevance_of(layer(100, 5, 2), kOrder101)},
      {"relevance, N = 100, one large class", relevance_of(lopsided(layer(100, 5, 2)), kOrder101)},
      {"relevance, N = 100, products", relevance_of(wide(layer(100, 53, 9)), kOrder101)},
      {"relevance, N = 100, products refused", relevance_of(narrow(layer(100, 53, 9)), kOrder101)},
      {"relevance, N = 100, label kernel", relevance_of(with_label_kernel(layer(100, 5, 4), 0.25F, 0.25F), kOrder101)},
      {"relevance, N = 135", relevance_of(layer(135, 11, 2), kOrder101)},
      {"relevance, N = 135, many classes", relevance_of(layer(135, 5, 40), kOrder101)},
      {"relevance, N = 135, label kernel", relevance_of(with_label_kernel(layer(135, 5, 4), 0.25F, 0.25F), kOrder101)},
      {"relevance, float64", relevance_of(Layer<double>(37, 2, 19, 4, Data::kRectified, 3), kShannon)},
      {"relevance, eigenvalues, label kernel", relevance_of(with_label_kernel(layer(37, 5, 4), 0.25F, 0.25F), kLarge)},
      {"relevance, redone", relevance_of(indefinite(layer(37, 5, 4)), kOrder101)},
      {"matrix_entropy, N = 100", entropy_of_matrices<float>(100)},
      {"matrix_entropy, N = 135", entropy_of_matrices<float>(135)},
      {"matrix_entropy, float64", entropy_of_matrices<double>(37)},
      {"kernel_alignment", alignment_of(Layer<float>(50, 2, 7, 4, Data::kRectified, 9))},
  };
}

// In any bit: no schedule may show in a result.
bool differ(std::vector<double> const& a, std::vector<double> const& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!(a[i] == b[i])) return true;
  }
  return false;
}

// Whether deleting the site spoils one of the problems that meet it.
bool is_noticed(emulator::Site const& site, std::vector<Problem> const& all,
                std::vector<std::vector<emulator::Site>> const& met, std::vector<std::vector<double>> const& expected,
                std::string& by) {
  for (std::size_t k = 0; k < all.size(); ++k) {
    if (std::find(met[k].begin(), met[k].end(), site) == met[k].end()) continue;
    for (unsigned seed = 0; seed < kSchedules; ++seed) {
      try {
        if (!differ(all[k].run({seed, site}), expected[k])) continue;
        by = all[k].name;
      } catch (std::runtime_error const& fault) {
        by = std::string(all[k].name) + ": " + fault.what();
      }
      return true;
    }
  }
  return false;
}

void every_barrier_is_needed_and_noticed() {
  std::vector<Problem> const all = problems();
  std::vector<std::vector<emulator::Site>> met;
  std::vector<std::vector<double>> expected;
  std::vector<emulator::Site> sites;
  for (Problem const& problem : all) {
    emulator::clear_sites();
    expected.push_back(problem.run({0}));
    met.push_back(emulator::sites());
    CHECK(!differ(expected.back(), problem.run({1})));  // without a mutation the schedule does not matter
    for (emulator::Site const& site : met.back()) {
      if (std::find(sites.begin(), sites.end(), site) == sites.end()) sites.push_back(site);
    }
  }
  for (emulator::Site const& site : sites) {
    std::string by;
    bool const noticed = is_noticed(site, all, met, expected, by);
    CHECK(noticed);
    std::printf("%s:%u %s\n", site.file, site.line, noticed ? by.c_str() : "SURVIVED");
  }
  CHECK(sites.size() > 20);
}

}  // namespace
}  // namespace hrel

int main() {
  hrel::every_barrier_is_needed_and_noticed();
  return hrel::test::result();
}
