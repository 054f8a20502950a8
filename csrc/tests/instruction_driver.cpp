// A fixed problem whose instructions are counted by valgrind (benchmarks/instruction_counts.py): the relevance of
// rectified maps of 128 samples and ten classes, on one thread, at the level x86-64-v3, which valgrind knows.
//   instruction_driver FILTERS FEATURES
// prints the compiler; `measured` is the function that is counted. SPDX-License-Identifier: MIT
#include <cstdio>
#include <cstdlib>

#include "cpu/launch.h"
#include "tests/problems.h"

extern "C" [[gnu::noinline]] void measured(hrel::RelevanceProblem<float> const& problem) {
  hrel::cpu::relevance(problem, hrel::cpu::NumThreads{1}, hrel::cpu::kLevelV3);
}

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "instruction_driver takes FILTERS FEATURES\n");
    return 2;
  }
  hrel::Index const filters = std::atoi(arguments[1]), features = std::atoi(arguments[2]);
  hrel::test::Layer<float> layer(128, filters, features, 10, hrel::test::Data::kRectified, 1787);
  measured(layer.problem(hrel::test::kOrder101));
  std::printf("%s\n", HREL_COMPILER);
}
