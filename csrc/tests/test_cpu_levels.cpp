// Every ISA level that this processor has, against a scalar float64 computation of the same entropies and alignments.
// SPDX-License-Identifier: MIT
#include <cstdio>
#include <limits>

#include "check.h"
#include "cpu/launch.h"
#include "tests/problems.h"

namespace hrel {
namespace {

using namespace test;

template <class Scalar>
void check_layer(Layer<Scalar>& layer, EntropyOrder const& order, cpu::Level const& level, double tolerance) {
  cpu::relevance(layer.problem(order), cpu::NumThreads{2}, level);
  for (Index f = 0; f < layer.filters; f += 4) {
    Entropies const expected = expected_entropies(layer, f, order.alpha);
    CHECK_NEAR(layer.entropy[f], expected.own, tolerance);
    CHECK_NEAR(layer.joint[f], expected.joint, tolerance);
  }
}

void every_level_agrees_with_scalar_float64(cpu::Level const& level) {
  for (Data data : kAllData) {
    unsigned const seed = static_cast<unsigned>(data) + 1;
    for (Index n : {1, 2, 3, 33, 50}) {
      Layer<float> layer(n, 9, 5, 4, data, seed);
      for (EntropyOrder const& order : {kOrder101, kSquare, kCube, kLarge}) check_layer(layer, order, level, 2e-5);
      Layer<double> exact(n, 5, 3, 4, data, seed);
      for (EntropyOrder const& order : {kShannon, kSquare, kCube, kLarge}) check_layer(exact, order, level, 1e-10);
    }
  }
}

// [N, D, F]
std::vector<float> channels_last(Layer<float> const& layer) {
  std::vector<float> last(layer.acts.size());
  for (Index i = 0; i < layer.n; ++i) {
    for (Index f = 0; f < layer.filters; ++f) {
      for (Index p = 0; p < layer.features; ++p) {
        last[(i * layer.features + p) * layer.filters + f] = layer.acts[(i * layer.filters + f) * layer.features + p];
      }
    }
  }
  return last;
}

void maps_of_any_length_agree_with_scalar_float64_and_with_any_layout(cpu::Level const& level) {
  for (Index n : {1, 2, 3, 8, 33, 50}) {
    for (Index features : {7, 23, 24, 255, 256, 300}) {
      for (Data data : kAllData) {
        Layer<float> layer(n, 9, features, 4, data, 11);
        check_layer(layer, kOrder101, level, 2e-5);
        // channels_last is read in another way; long maps are summed in another order, too.
        std::vector<float> const last = channels_last(layer);
        std::vector<float> entropy(9), joint(9);
        RelevanceProblem<float> other = layer.problem(kOrder101);
        other.acts = {last.data(), n, 9, features, features * 9, 1, 9};
        other.entropy = entropy.data();
        other.joint_entropy = joint.data();
        cpu::relevance(other, cpu::NumThreads{2}, level);
        for (Index f = 0; f < 9; ++f) {
          CHECK_NEAR(entropy[f], layer.entropy[f], features < 256 ? 0 : 2e-5);
          CHECK_NEAR(joint[f], layer.joint[f], features < 256 ? 0 : 2e-5);
        }
      }
    }
    Layer<double> exact(n, 5, 260, 4, Data::kGauss, 12);
    check_layer(exact, kShannon, level, 1e-10);
  }
}

// Products know the distances of some filters and not of their neighbours', which must not change a bit for it.
void a_filter_alone_and_among_others_gives_the_same_bits(cpu::Level const& level) {
  for (Index features : {5, 40, 300}) {
    for (Data data : {Data::kGauss, Data::kRectified}) {
      Index const n = 33, filters = 43;
      Layer<float> layer(n, filters, features, 4, data, 21);
      for (Index f = 0; f < filters; f += 3) {  // two near samples, far from the rest
        for (Index i : {4, 9}) {
          for (Index p = 0; p < features; ++p) layer.acts[(i * filters + f) * features + p] += 3000;
        }
      }
      layer.acts[1 * features] = std::numeric_limits<float>::quiet_NaN();  // of filter 1
      std::vector<float> const last = channels_last(layer);
      for (bool transposed : {false, true}) {
        RelevanceProblem<float> const whole = [&] {
          RelevanceProblem<float> problem = layer.problem(kOrder101);
          if (transposed) problem.acts = {last.data(), n, filters, features, features * filters, 1, filters};
          return problem;
        }();
        cpu::relevance(whole, cpu::NumThreads{1}, level);
        for (Index f = 0; f < filters; ++f) {
          float entropy, joint;
          RelevanceProblem<float> alone = whole;
          alone.acts.data += f * whole.acts.filter_stride;
          alone.acts.num_filters = 1;
          alone.sigma += f;
          alone.entropy = &entropy;
          alone.joint_entropy = &joint;
          cpu::relevance(alone, cpu::NumThreads{1}, level);
          CHECK(std::isnan(entropy) == (f == 1) && std::isnan(layer.entropy[f]) == (f == 1));
          if (f == 1) continue;
          CHECK(entropy == layer.entropy[f]);
          CHECK(joint == layer.joint[f]);
          Entropies const expected = expected_entropies(layer, f, kOrder101.alpha);
          CHECK_NEAR(entropy, expected.own, 2e-5);
          CHECK_NEAR(joint, expected.joint, 2e-5);
        }
      }
    }
  }
}

void short_maps_reserve_no_scratch_for_long_ones(cpu::Level const& level) {
  auto const bytes = [&](Index features, Index filter_stride, Index feature_stride) {
    Layer<float> layer(50, 9, features, 4, Data::kGauss, 1);
    RelevanceProblem<float> problem = layer.problem(kOrder101);
    problem.acts.filter_stride = filter_stride;
    problem.acts.feature_stride = feature_stride;
    return level.float_kernels.relevance.scratch_bytes(problem);
  };
  CHECK(bytes(255, 255, 1) < bytes(256, 256, 1));
  CHECK(bytes(255, 255, 1) == bytes(2, 2, 1));
  CHECK(bytes(255, 1, 9) < bytes(256, 1, 9));
  CHECK(bytes(256, 1, 9) == bytes(1000, 1, 9));
}

template <class Scalar>
void permuted_labels_agree_with_labels_in_their_order(cpu::Level const& level, EntropyOrder const& order) {
  Index const count = 3, filters = 9;
  for (Index n : {1, 2, 33, 50}) {
    Layer<Scalar> layer(n, filters, 5, 4, Data::kRectified, 13);
    std::vector<Index> permutations(count * n);  // [R, N], the first one the identity
    std::mt19937 random(14);
    for (Index r = 0; r < count; ++r) {
      std::iota(permutations.begin() + r * n, permutations.begin() + (r + 1) * n, Index{0});
      if (r > 0) std::shuffle(permutations.begin() + r * n, permutations.begin() + (r + 1) * n, random);
    }
    std::vector<Scalar> joint(count * filters);
    cpu::permuted_joint_entropy(
        {layer.view(), layer.label_view(), layer.sigma.data(), order, permutations.data(), count, joint.data()},
        cpu::NumThreads{2}, level);
    for (Index r = 0; r < count; ++r) {
      Layer<Scalar> permuted = layer;
      for (Index k = 0; k < n; ++k) permuted.order[k] = layer.order[permutations[r * n + k]];
      cpu::relevance(permuted.problem(order), cpu::NumThreads{1}, level);
      for (Index f = 0; f < filters; ++f) {
        CHECK_NEAR(joint[r * filters + f], permuted.joint[f], (sizeof(Scalar) == 4 ? 2e-5 : 1e-10));
        CHECK(r > 0 || joint[f] == permuted.joint[f]);
      }
    }
  }
}

void a_label_kernel_takes_the_place_of_the_classes(cpu::Level const& level) {
  Layer<float> layer = with_label_kernel({33, 9, 5, 4, Data::kRectified, 5}, 1, 0.25F);
  for (EntropyOrder const& order : {kOrder101, kSquare, kCube, kLarge}) check_layer(layer, order, level, 2e-5);
}

void an_indefinite_joint_matrix_is_redone_by_eigenvalues(cpu::Level const& level) {
  Layer<float> layer = indefinite({33, 3, 5, 4, Data::kGauss, 6});
  check_layer(layer, kOrder101, level, 2e-5);
}

void one_filter_and_many_give_the_same_bits_on_any_number_of_threads(cpu::Level const& level) {
  for (Index features : {5, 40, 300}) {  // maps of either length; groups, whole or half, depend on the threads
    for (int threads : {1, 3, 7, 40}) {
      Layer<float> all(features < 300 ? 101 : 37, 41, features, 5, Data::kRectified, 7);
      cpu::relevance(all.problem(kOrder101), cpu::NumThreads{threads}, level);
      for (Index f = 0; f < all.filters; ++f) {
        float entropy = -1, joint = -1;
        RelevanceProblem<float> const one = only_filter(all.problem(kOrder101), f, entropy, joint);
        cpu::relevance(one, cpu::NumThreads{1}, level);
        CHECK(entropy == all.entropy[f]);
        CHECK(joint == all.joint[f]);
      }
    }
  }
}

void a_value_that_is_not_finite_spoils_its_own_filter_alone(cpu::Level const& level) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (EntropyOrder const& order : {kOrder101, kSquare, kCube, kLarge}) {
      Index const features = order.spectrum == Spectrum::kRational ? 90 : 6;  // long maps and short ones
      Layer<float> layer(21, 10, features, 3, Data::kGauss, 8), clean(21, 10, features, 3, Data::kGauss, 8);
      layer.acts[(4 * 10 + 6) * features + 2] = bad;  // sample 4, filter 6
      cpu::relevance(layer.problem(order), cpu::NumThreads{2}, level);
      cpu::relevance(clean.problem(order), cpu::NumThreads{2}, level);
      for (Index f = 0; f < 10; ++f) {
        CHECK(std::isnan(layer.entropy[f]) == (f == 6));
        CHECK(f == 6 || layer.entropy[f] == clean.entropy[f]);
      }
    }
  }
}

// Matrices of every kind that a group may hold, [B, N, N]: products of growing rank, the identity, ones, nearly ones.
template <class Scalar>
std::vector<Scalar> matrices(Index count, Index n) {
  std::mt19937 random(static_cast<unsigned>(n));
  std::normal_distribution<double> normal;
  std::vector<Scalar> gram(count * n * n);
  for (Index b = 0; b < count; ++b) {
    Index const rank = std::min(n, 1 + b * b);
    std::vector<double> factors(n * rank);
    for (double& factor : factors) factor = normal(random);
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) {
        double product = 0;
        for (Index k = 0; k < rank; ++k) product += factors[i * rank + k] * factors[j * rank + k];
        double const element = b % 5 == 2 ? (i == j ? 3 : 0) : b % 5 == 3 ? 1e20 : b % 5 == 4 && i != j ? 0.9999 : 1;
        gram[(b * n + i) * n + j] = static_cast<Scalar>(b % 5 < 2 ? product : element);
      }
    }
  }
  return gram;
}

template <class Scalar>
void entropies_of_matrices_agree_with_scalar_float64(cpu::Level const& level, std::vector<EntropyOrder> const& orders,
                                                     double tolerance) {
  Index const count = 11;
  for (Index n : {1, 2, 3, 33, 50}) {
    std::vector<Scalar> const gram = matrices<Scalar>(count, n);
    std::vector<Scalar> entropy(count);
    for (EntropyOrder const& order : orders) {
      cpu::matrix_entropy({{gram.data(), count, n, n * n, n, 1}, order, entropy.data()}, cpu::NumThreads{2}, level);
      for (Index b = 0; b < count; ++b) {
        double trace = 0;
        for (Index i = 0; i < n; ++i) trace += gram[(b * n + i) * n + i];
        std::vector<double> a(gram.data() + b * n * n, gram.data() + (b + 1) * n * n);
        for (double& element : a) element /= trace;
        CHECK_NEAR(entropy[b], entropy_by_jacobi(a, n, order.alpha), tolerance);
        Scalar alone = -1;
        cpu::matrix_entropy({{gram.data() + b * n * n, 1, n, 0, 1, n}, order, &alone}, cpu::NumThreads{1}, level);
        CHECK(alone == entropy[b]);
      }
    }
  }
}

void a_matrix_without_entropy_spoils_itself_alone(cpu::Level const& level) {
  Index const count = 11, n = 33;
  std::vector<float> const clean = matrices<float>(count, n);
  for (EntropyOrder const& order : {kOrder101, kSquare, kCube, kLarge}) {
    std::vector<float> gram = clean, entropy(count), expected(count);
    gram[(1 * n + 20) * n + 4] = std::numeric_limits<float>::quiet_NaN();
    gram[(5 * n + 7) * n + 7] = std::numeric_limits<float>::infinity();
    std::fill_n(gram.begin() + 6 * n * n, n * n, 0.0F);
    std::fill_n(gram.begin() + 9 * n * n, n * n, -1.0F);
    cpu::matrix_entropy({{clean.data(), count, n, n * n, n, 1}, order, expected.data()}, cpu::NumThreads{2}, level);
    cpu::matrix_entropy({{gram.data(), count, n, n * n, n, 1}, order, entropy.data()}, cpu::NumThreads{3}, level);
    for (Index b = 0; b < count; ++b) {
      bool const spoiled = b == 1 || b == 5 || b == 6 || b == 9;
      CHECK(std::isnan(entropy[b]) == spoiled);
      CHECK(spoiled || entropy[b] == expected[b]);
    }
  }
}

template <class Scalar>
void alignments_are_their_definition(cpu::Level const& level, double tolerance) {
  for (int round = 0; round < 4; ++round) {
    bool const per_filter = round % 2 == 1;
    Layer<Scalar> layer(29, 11, round < 2 ? 7 : 90, 4, Data::kRectified, 9);
    // At the first one distances lie beyond the last bin.
    std::vector<Scalar> const multiples{Scalar(1e-5), Scalar(0.3), Scalar(0.7), 1, Scalar(1.5), 2, 3, 5, 7, 9, 10, 20};
    Index const rows = per_filter ? layer.filters : 1, widths = static_cast<Index>(multiples.size());
    std::vector<Scalar> mean(rows), alignment(rows * widths);
    cpu::kernel_alignment(
        {layer.view(), layer.label_view(), multiples.data(), widths, per_filter, mean.data(), alignment.data()},
        cpu::NumThreads{2}, level);
    for (Index row = 0; row < rows; ++row) {
      Alignments const expected = expected_alignments(layer, multiples, per_filter, row);
      CHECK_NEAR(mean[row], expected.mean_distance, 1e-6 * expected.mean_distance);
      for (Index m = 0; m < widths; ++m) {
        CHECK_NEAR(alignment[row * widths + m], expected.alignment[m], tolerance);
      }
      if (!per_filter) continue;
      std::vector<Scalar> alone(widths);
      AlignmentProblem<Scalar> one{layer.view(), layer.label_view(), multiples.data(), widths,
                                   true,         &mean[row],         alone.data()};
      one.acts.data += row * one.acts.filter_stride;
      one.acts.num_filters = 1;
      cpu::kernel_alignment(one, cpu::NumThreads{1}, level);
      CHECK(std::equal(alone.begin(), alone.end(), alignment.begin() + row * widths));
    }
  }
}

// What is made of labels as they come, to the bit: terms of entropies, and the first of the best widths.
template <class Scalar>
void labels_as_they_come_give_the_bits_of_sorted_ones(cpu::Level const& level, EntropyOrder const& order) {
  for (Index n : {1, 2, 33}) {
    Layer<Scalar> layer(n, 11, 30, 4, Data::kRectified, 17);
    cpu::NumThreads const threads{2};
    cpu::relevance(layer.problem(order), threads, level);
    Scalar label_entropy = -1;
    std::vector<Scalar> relevance(11, -1), entropy(11, -1), joint(11, -1);
    TermsProblem<Scalar> terms{layer.view(),     layer.labels.data(), layer.sigma.data(), order,
                               relevance.data(), entropy.data(),      joint.data(),       &label_entropy};
    layer.labels[n / 2] -= 7;  // of no class id
    layer.sigma[3] = 0;
    CHECK(!cpu::relevance_terms(terms, threads, level));  // for its label
    layer.labels[n / 2] += 7;
    for (Scalar width :
         {Scalar(0), Scalar(-1), std::numeric_limits<Scalar>::infinity(), std::numeric_limits<Scalar>::quiet_NaN()}) {
      layer.sigma[3] = width;
      CHECK(!cpu::relevance_terms(terms, threads, level));
    }
    CHECK(label_entropy == -1 && relevance == std::vector<Scalar>(11, -1));  // nothing was computed
    CHECK(entropy == relevance && joint == relevance);

    layer.sigma[3] = layer.sigma[10];  // as it was: the widths have a period of 7
    CHECK(cpu::relevance_terms(terms, threads, level));
    CHECK(entropy == layer.entropy && joint == layer.joint);
    std::vector<double> shares;
    for (Index c = 0; layer.offsets[c] < n; ++c) {
      shares.push_back(static_cast<double>(layer.offsets[c + 1] - layer.offsets[c]) / static_cast<double>(n));
    }
    Index const classes = static_cast<Index>(shares.size());
    CHECK(label_entropy == static_cast<Scalar>(entropy_bits_of_eigenvalues(shares.data(), classes, order.alpha)));
    for (Index f = 0; f < 11; ++f) CHECK(relevance[f] == entropy[f] - joint[f] + label_entropy);

    std::vector<Scalar> const multiples{Scalar(0.3), Scalar(0.7), 1, 1, 2, 3, 5, 10};  // two of them equal
    for (bool per_filter : {false, true}) {
      Index const rows = per_filter ? 11 : 1;
      std::vector<Scalar> mean(rows), alignment(rows * 8), means(rows, -1), width(rows, -1);
      cpu::kernel_alignment(
          {layer.view(), layer.label_view(), multiples.data(), 8, per_filter, mean.data(), alignment.data()}, threads,
          level);
      WidthProblem<Scalar> const search{layer.view(), layer.labels.data(), multiples.data(), 8,
                                        per_filter,   means.data(),        width.data()};
      layer.labels[0] -= 7;
      CHECK(!cpu::kernel_width(search, threads, level));
      CHECK(means == std::vector<Scalar>(rows, -1) && width == means);
      layer.labels[0] += 7;
      CHECK(cpu::kernel_width(search, threads, level));
      CHECK(means == mean);
      for (Index r = 0; r < rows; ++r) {
        Index best = 0;
        for (Index m = 1; m < 8; ++m) best = alignment[r * 8 + m] > alignment[r * 8 + best] ? m : best;
        CHECK(width[r] == multiples[best] * mean[r]);
      }
    }

    layer.acts[(n - 1) * 11 * 30 + 4 * 30] = std::numeric_limits<Scalar>::infinity();  // of filter 4
    CHECK(!cpu::relevance_terms(terms, threads, level));
    for (Index f = 0; f < 11; ++f) CHECK(std::isnan(relevance[f]) == (f == 4) && std::isnan(entropy[f]) == (f == 4));
  }
}

}  // namespace
}  // namespace hrel

int main() {
  using namespace hrel;
  for (cpu::Level const* level : cpu::usable_levels()) {
    std::printf("%s\n", level->name);
    every_level_agrees_with_scalar_float64(*level);
    maps_of_any_length_agree_with_scalar_float64_and_with_any_layout(*level);
    a_filter_alone_and_among_others_gives_the_same_bits(*level);
    short_maps_reserve_no_scratch_for_long_ones(*level);
    a_label_kernel_takes_the_place_of_the_classes(*level);
    for (EntropyOrder const& order : {kOrder101, kSquare, kCube, kLarge}) {
      permuted_labels_agree_with_labels_in_their_order<float>(*level, order);
    }
    for (EntropyOrder const& order : {kShannon, kSquare, kCube, kLarge}) {
      permuted_labels_agree_with_labels_in_their_order<double>(*level, order);
    }
    an_indefinite_joint_matrix_is_redone_by_eigenvalues(*level);
    one_filter_and_many_give_the_same_bits_on_any_number_of_threads(*level);
    a_value_that_is_not_finite_spoils_its_own_filter_alone(*level);
    entropies_of_matrices_agree_with_scalar_float64<float>(*level, {kOrder101, kSquare, kCube, kLarge}, 2e-5);
    entropies_of_matrices_agree_with_scalar_float64<double>(*level, {kShannon, kSquare, kCube, kLarge}, 1e-10);
    a_matrix_without_entropy_spoils_itself_alone(*level);
    alignments_are_their_definition<float>(*level, 1e-5);
    alignments_are_their_definition<double>(*level, 1e-12);
    for (EntropyOrder const& order : {kOrder101, kSquare, kCube, kLarge}) {
      labels_as_they_come_give_the_bits_of_sorted_ones<float>(*level, order);
    }
    labels_as_they_come_give_the_bits_of_sorted_ones<double>(*level, kShannon);
  }
  return test::result();
}
