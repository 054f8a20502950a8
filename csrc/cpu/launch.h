// What the bindings may call. Every function computes all of its problem before it returns, on `num_threads` threads;
// equal operands give equal bits, whatever the number of threads. SPDX-License-Identifier: MIT
#pragma once
#include <vector>

#include "cpu/level.h"
#include "numerics/problem.h"

namespace hrel::cpu {

struct NumThreads {
  int value;
};

// The levels of this build that this processor can run, the best first; never empty.
std::vector<Level const*> usable_levels();

// The names of all levels of this build, the best first.
std::vector<char const*> built_levels();

// labels [N]: order [N] holds the samples sorted by label, those of a class as they stood; class_offsets [N + 1] where
// in it each class begins, and N in unused entries; smallest [1] the first label in order. N >= 1. Throws
// std::bad_alloc.
void sort_by_class(Index const* labels, Index num_samples, Index* order, Index* class_offsets, Index* smallest);

// S(A_f) and S(A_f, B) of every filter. Throws std::bad_alloc, and std::runtime_error where eigenvalues do not
// converge.
void relevance(RelevanceProblem<float> const& problem, NumThreads threads, Level const& level);
void relevance(RelevanceProblem<double> const& problem, NumThreads threads, Level const& level);

// The relevance of every filter and what it is made of. Returns whether the operands are as they must be: where a label
// is < 0, or a width not > 0 and finite, nothing is computed; a filter with a value not finite has NaN. Throws as
// above.
bool relevance_terms(TermsProblem<float> const& problem, NumThreads threads, Level const& level);
bool relevance_terms(TermsProblem<double> const& problem, NumThreads threads, Level const& level);

// S(A_f, B_r) of every filter and permutation of the labels. Throws as above.
void permuted_joint_entropy(PermutationProblem<float> const& problem, NumThreads threads, Level const& level);
void permuted_joint_entropy(PermutationProblem<double> const& problem, NumThreads threads, Level const& level);

// S of every matrix divided by its trace; NaN where an element is not finite or the trace not positive. Throws as
// above.
void matrix_entropy(EntropyProblem<float> const& problem, NumThreads threads, Level const& level);
void matrix_entropy(EntropyProblem<double> const& problem, NumThreads threads, Level const& level);

// Mean distance and alignment of every width, of each filter or of the layer. Throws std::bad_alloc.
void kernel_alignment(AlignmentProblem<float> const& problem, NumThreads threads, Level const& level);
void kernel_alignment(AlignmentProblem<double> const& problem, NumThreads threads, Level const& level);

// Mean distance and width, of each filter or of the layer. Returns false, and nothing is computed, where a label is <
// 0. Throws std::bad_alloc.
bool kernel_width(WidthProblem<float> const& problem, NumThreads threads, Level const& level);
bool kernel_width(WidthProblem<double> const& problem, NumThreads threads, Level const& level);

}  // namespace hrel::cpu
