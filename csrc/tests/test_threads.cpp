// Every op on several threads, from two callers at once: what the thread sanitizer watches (HREL_SANITIZE=thread). It
// follows std::thread; libgomp is not built for it, and is not loaded here. SPDX-License-Identifier: MIT
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/launch.h"
#include "tests/problems.h"

namespace hrel {
namespace {

using namespace test;

// What all ops give for one layer, on so many threads.
template <class Scalar>
std::vector<Scalar> results(int num_threads, EntropyOrder const& order) {
  cpu::NumThreads const threads{num_threads};
  cpu::Level const& level = *cpu::usable_levels().front();
  std::vector<Scalar> all;
  auto const keep = [&](std::vector<Scalar> const& part) { all.insert(all.end(), part.begin(), part.end()); };
  for (Index features : {6, 90}) {  // short maps, and long ones, whose distances take turns
    Layer<Scalar> layer(21, 19, features, 4, Data::kRectified, 15);
    cpu::relevance(layer.problem(order), threads, level);
    keep(layer.entropy);
    keep(layer.joint);
    std::vector<Index> permutations(3 * layer.n);
    for (Index k = 0; k < 3 * layer.n; ++k) permutations[k] = (k % layer.n * 5 + k / layer.n) % layer.n;
    std::vector<Scalar> joint(3 * layer.filters);
    cpu::permuted_joint_entropy(
        {layer.view(), layer.label_view(), layer.sigma.data(), order, permutations.data(), 3, joint.data()}, threads,
        level);
    keep(joint);
    std::vector<Scalar> const multiples{Scalar(0.3), 1, 2, 10};
    for (bool per_filter : {false, true}) {
      std::vector<Scalar> mean(layer.filters), alignment(layer.filters * 4);
      cpu::kernel_alignment(
          {layer.view(), layer.label_view(), multiples.data(), 4, per_filter, mean.data(), alignment.data()}, threads,
          level);
      keep(mean);
      keep(alignment);
    }
    // The Gram matrices of inner products of the maps of each filter, whole: [F, N, N].
    std::vector<Scalar> gram(layer.filters * layer.n * layer.n), entropy(layer.filters);
    for (Index f = 0; f < layer.filters; ++f) {
      for (Index i = 0; i < layer.n; ++i) {
        for (Index j = 0; j < layer.n; ++j) {
          gram[(f * layer.n + i) * layer.n + j] = static_cast<Scalar>(1 / (1 + layer.squared_distance(f, i, j)));
        }
      }
    }
    cpu::matrix_entropy({{gram.data(), layer.filters, layer.n, layer.n * layer.n, layer.n, 1}, order, entropy.data()},
                        threads, level);
    keep(entropy);
  }
  return all;
}

template <class Scalar>
void callers_at_once_on_any_number_of_threads_get_the_same_bits(EntropyOrder const& order) {
  std::vector<Scalar> const expected = results<Scalar>(1, order);
  for (int num_threads : {2, 3, 5}) {
    std::vector<Scalar> first, second;
    {
      std::jthread const caller([&] { first = results<Scalar>(num_threads, order); });
      second = results<Scalar>(num_threads, order);
    }
    CHECK(first == expected);
    CHECK(second == expected);
  }
}

// The failure of one thread reaches the caller, and says how much memory there should have been.
void too_many_samples_are_refused_before_any_memory_is_taken() {
  Index const n = 5'000'000;
  float value = 1, sigma = 1, entropy = 0, joint = 0;
  std::vector<Index> order(n), offsets(n + 1);
  try {
    cpu::relevance(
        {{&value, n, 1, 1, 0, 0, 0}, {order.data(), offsets.data(), nullptr}, &sigma, kOrder101, &entropy, &joint},
        cpu::NumThreads{2}, *cpu::usable_levels().front());
    CHECK(false);
  } catch (std::bad_alloc const& error) {
    CHECK(std::string(error.what()).find("bytes in all") != std::string::npos);
  }
}

}  // namespace
}  // namespace hrel

int main() {
  using namespace hrel;
  callers_at_once_on_any_number_of_threads_get_the_same_bits<float>(test::kOrder101);
  callers_at_once_on_any_number_of_threads_get_the_same_bits<float>(test::kLarge);
  callers_at_once_on_any_number_of_threads_get_the_same_bits<double>(test::kShannon);
  too_many_samples_are_refused_before_any_memory_is_taken();
  return test::result();
}
