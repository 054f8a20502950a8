// Every CUDA kernel, as it is, on the emulator, through the same sequence of launches as on a GPU, against float64.
// SPDX-License-Identifier: MIT
#include "tests/emulated.h"
// Not sorted: the emulator comes first.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "tests/problems.h"

namespace hrel {
namespace {

using namespace test;

// The tolerance of hrel_ext/testing.py.
double tolerance(Index n) { return n <= 128 ? 2e-5 : 4e-5; }

template <class Scalar>
void check_entropies(Layer<Scalar> const& layer, double alpha, double limit) {
  for (Index f = 0; f < layer.filters; ++f) {
    Entropies const expected = expected_entropies(layer, f, alpha);
    CHECK_NEAR(layer.entropy[f], expected.own, limit);
    CHECK_NEAR(layer.joint[f], expected.joint, limit);
  }
}

void every_size_agrees_with_float64() {
  for (Index n : {1, 2, 13, 31, 32, 33, 64, 97, 100, 128, 200, 256}) {
    for (unsigned seed : {1U, 2U}) {
      Layer<float> layer(n, n <= 64 ? 5 : n <= 128 ? 2 : 1, 11, 10, Data::kRectified, seed);
      CHECK(run(layer.problem(kOrder101), {seed}) == 0);
      check_entropies(layer, 1.01, tolerance(n));
    }
  }
}

void every_kind_of_data_agrees_with_float64() {
  for (Data data : kAllData) {
    for (Index n : {21, 50, 100}) {
      Layer<float> layer(n, 2, 5, 4, data, static_cast<unsigned>(data) + 1);
      CHECK(run(layer.problem(kOrder101), {static_cast<unsigned>(data)}) == 0);
      check_entropies(layer, 1.01, tolerance(n));
    }
  }
}

void classes_of_every_size_agree_with_float64() {
  for (Index n : {32, 60, 110, 140}) {
    for (int classes : {1, 2, 3, 200}) {  // one block, blocks above and below the size of a warp's, single samples
      Layer<float> layer(n, 1, 3, classes, Data::kGauss, static_cast<unsigned>(classes));
      CHECK(run(layer.problem(kOrder101), {static_cast<unsigned>(n)}) == 0);
      check_entropies(layer, 1.01, tolerance(n));
    }
  }
}

// As many classes that are too large for registers as there can be.
void seven_large_classes_agree_with_float64() {
  Layer<float> layer(256, 1, 3, 7, Data::kGauss, 3);
  CHECK(run(layer.problem(kOrder101), {2}) == 0);
  check_entropies(layer, 1.01, tolerance(256));
}

// Only the raw op can be given one.
template <class Scalar>
void check_empty_classes(Index n, EntropyOrder const& order) {
  Layer<Scalar> layer(n, 1, 3, 3, Data::kGauss, 4), plain = layer;
  layer.offsets.insert(layer.offsets.begin() + 1, {0, layer.offsets[1]});  // the first of all, and one in the middle
  layer.offsets.resize(n + 1);
  CHECK(run(layer.problem(order), {2}) == 0);
  CHECK(run(plain.problem(order), {2}) == 0);
  CHECK(layer.entropy == plain.entropy);
  CHECK(layer.joint == plain.joint);
}

void empty_classes_change_nothing() {
  for (Index n : {20, 50, 100, 140}) check_empty_classes<float>(n, kOrder101);
  check_empty_classes<double>(40, kShannon);
}

void other_orders_agree_with_float64() {
  for (Index n : {1, 13, 40, 70}) {
    for (EntropyOrder const& order : {kSquare, kCube, kShannon, kLarge}) {
      Layer<float> layer(n, 2, 4, 3, Data::kRectified, 7);
      CHECK(run(layer.problem(order), {3}) == 0);
      check_entropies(layer, order.alpha, tolerance(n));
    }
  }
}

void float64_agrees_to_its_own_precision() {
  for (Index n : {1, 2, 33, 70}) {
    for (EntropyOrder const& order : {kShannon, kSquare, kCube, kLarge}) {
      Layer<double> layer(n, 2, 9, 3, Data::kGauss, 8);  // its results are 0 before, which nothing may keep
      CHECK(run(layer.problem(order), {4}) == 0);
      check_entropies(layer, order.alpha, 1e-10);
    }
  }
}

void a_label_kernel_takes_the_place_of_the_classes() {
  for (Index n : {20, 50, 100, 140}) {
    for (EntropyOrder const& order : {kOrder101, kLarge}) {
      Layer<float> layer = with_label_kernel({n, 1, 5, 4, Data::kRectified, 5}, 1, 0.25F);
      CHECK(run(layer.problem(order), {5}) == 0);
      check_entropies(layer, order.alpha, tolerance(n));
    }
  }
}

void an_indefinite_joint_matrix_is_redone_by_eigenvalues() {
  for (Index n : {33, 70, 130}) {
    Layer<float> layer = indefinite({n, 1, 5, 4, Data::kGauss, 6});
    CHECK(run(layer.problem(kOrder101), {6}) == 1);
    check_entropies(layer, 1.01, tolerance(n));
  }
}

// Whether every distance came from products: barriers of that stage were met, and none of the differences'.
bool products_were_taken() {
  auto const sites = emulator::sites();
  auto const met = [&](std::string_view file) {
    return std::any_of(sites.begin(), sites.end(),
                       [&](emulator::Site const& site) { return std::string_view(site.file).ends_with(file); });
  };
  return met("product.cuh") && !met("gram.cuh");
}

// Maps large enough for the tensor cores, with an offset; an outlier or a narrow width makes it differences.
void products_agree_with_float64() {
  for (Index n : {9, 32, 50, 64, 100, 128}) {
    for (Index features : {32, 41, 100}) {
      Layer<float> layer(n, 1, features, 4, Data::kRectified, 3);
      for (float& value : layer.acts) value += 10;
      if (features == 32) layer.sigma[0] *= 2;  // about the mean distance, as a search finds it
      if (features == 41) layer.acts[0] += 1e4F;
      if (features == 100) layer.sigma[0] /= 20;
      emulator::clear_sites();
      CHECK(run(layer.problem(kOrder101), {static_cast<unsigned>(n)}) == 0);
      CHECK(products_were_taken() == (features == 32));
      check_entropies(layer, 1.01, tolerance(n));
    }
  }
}

// Near-duplicates four widths from the first sample: products of large squares would cancel between them.
void clusters_far_from_the_first_sample_agree_with_float64() {
  for (Index n : {48, 128}) {
    for (double spread : {1e-4, 1e-2, 0.1}) {
      Layer<float> layer(n, 1, 64, 4, Data::kGauss, 21);
      for (Index i = 0; i < n; ++i) {
        for (Index p = 0; p < 64; ++p) {
          float& value = layer.acts[i * 64 + p];  // |x|^2 is about (3.9 sigma)^2, sigma = 1
          value = i == layer.order[0] ? 0 : static_cast<float>(3.9 / 8 + spread / 8 * static_cast<double>(value));
        }
      }
      layer.sigma[0] = 1;
      emulator::clear_sites();
      CHECK(run(layer.problem(kOrder101), {static_cast<unsigned>(n)}) == 0);
      CHECK(!products_were_taken());
      check_entropies(layer, 1.01, tolerance(n));
    }
  }
}

// Large maps: positions are split, and the filters may take several launches.
void split_positions_agree_with_float64() {
  for (Index n : {9, 40, 100, 130}) {
    Layer<float> layer(n, 1, 600, 4, Data::kRectified, 9);
    CHECK(cuda::num_splits(600) == 2);
    CHECK(run(layer.problem(kOrder101), {7}) == 0);
    check_entropies(layer, 1.01, tolerance(n));
  }
}

// Rounding adds up where all terms are equal: on the way without slots, and in one part of a large map.
void sums_of_equal_terms_agree_with_float64() {
  for (Data data : {Data::kFlat, Data::kLine}) {
    for (Index n : {40, 128}) {
      for (float narrower : {1, 5}) {
        Layer<float> layer(n, 1, cuda::kPositionsPerSplit - 1, 4, data, 2);
        layer.sigma[0] *= 1.5F / narrower;
        emulator::clear_sites();
        CHECK(run(layer.problem(kOrder101), {7}) == 0);
        CHECK(!products_were_taken());
        check_entropies(layer, 1.01, tolerance(n));
      }
    }
  }
  for (Data data : {Data::kFlat, Data::kLine, Data::kRectified}) {
    Layer<float> layer(12, 1, cuda::kMostSplits * cuda::kLongestSum + 1000, 4, data, 2);  // two rounds
    emulator::clear_sites();
    CHECK(run(layer.problem(kOrder101), {7}) == 0);
    CHECK(products_were_taken() == (data == Data::kRectified));
    check_entropies(layer, 1.01, tolerance(12));
  }
}

void one_filter_and_many_give_the_same_bits() {
  for (Index n : {20, 45, 100, 130}) {
    for (Index features : {10, 520}) {
      Layer<float> all(n, n <= 64 ? 5 : 2, features, 5, Data::kRectified, 10);
      CHECK(run(all.problem(kOrder101), {8}) == 0);
      for (Index f = 0; f < all.filters; ++f) {
        float entropy = -1, joint = -1;
        RelevanceProblem<float> const one = only_filter(all.problem(kOrder101), f, entropy, joint);
        CHECK(run(one, {9}) == 0);
        CHECK(entropy == all.entropy[f]);
        CHECK(joint == all.joint[f]);
      }
    }
  }
}

void a_value_that_is_not_finite_spoils_its_own_filter_alone() {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (EntropyOrder const& order : {kOrder101, kSquare, kLarge}) {
      for (Index n : {21, 40}) {
        Layer<float> layer(n, 3, 6, 3, Data::kGauss, 8), clean(n, 3, 6, 3, Data::kGauss, 8);
        layer.acts[(4 * 3 + 1) * 6 + 2] = bad;  // sample 4, filter 1
        CHECK(run(layer.problem(order), {10}) == (order.spectrum == Spectrum::kEigenvalues ? 0 : 2));
        CHECK(run(clean.problem(order), {10}) == 0);
        for (Index f = 0; f < 3; ++f) {
          CHECK(std::isnan(layer.entropy[f]) == (f == 1));
          CHECK(f == 1 || layer.entropy[f] == clean.entropy[f]);
        }
      }
    }
  }
}

// The same values in other places and types.
template <class Stored, class Convert>
void check_stored(Convert const& convert) {
  for (Index n : {13, 100}) {
    for (Index features : {1, 2, 4, 9, 36}) {  // 36: by products
      Layer<float> layer(n, 3, features, 3, Data::kGauss, 11);
      for (float& value : layer.acts) value = std::round(value * 64) / 64;  // exact in every type
      // channels_last in a wider buffer: filters side by side, then positions, then samples.
      Index const pixel = 3 + 2, sample = features * pixel + 3;
      std::vector<Stored> stored(n * sample);
      for (Index i = 0; i < n; ++i) {
        for (Index f = 0; f < 3; ++f) {
          for (Index p = 0; p < features; ++p) {
            stored[i * sample + p * pixel + f] = convert(layer.acts[(i * 3 + f) * features + p]);
          }
        }
      }
      std::vector<float> entropy(3), joint(3);
      RelevanceProblem<float> const plain = layer.problem(kOrder101);
      CHECK(run(plain, {11}) == 0);
      RelevanceProblem<float, Stored> const stored_problem{{stored.data(), n, 3, features, sample, 1, pixel},
                                                           plain.labels,
                                                           plain.sigma,
                                                           plain.order,
                                                           entropy.data(),
                                                           joint.data()};
      CHECK(run(stored_problem, {12}) == 0);
      CHECK(entropy == layer.entropy);
      CHECK(joint == layer.joint);
      check_entropies(layer, 1.01, tolerance(n));
    }
  }
}

Half to_half(float value) {
  if (value == 0) return {0};
  int const exponent = std::ilogb(value);
  auto const fraction = static_cast<std::uint16_t>(std::lround(std::ldexp(std::fabs(value), 10 - exponent)) - 1024);
  return {static_cast<std::uint16_t>((value < 0 ? 1 << 15 : 0) | (exponent + 15) << 10 | fraction)};
}

void half_precision_and_any_strides_are_read_in_place() {
  check_stored<float>([](float value) { return value; });
  check_stored<Half>(to_half);
  check_stored<BFloat16>(
      [](float value) -> BFloat16 { return {static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16)}; });
}

template <class Scalar>
void check_matrices(Index n, EntropyOrder const& order, double limit) {
  Layer<double> const layer(n, 3, 4, 3, Data::kRectified, 12);
  std::vector<Scalar> gram(3 * n * n), entropy(3);
  for (Index f = 0; f < 3; ++f) {
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) {  // of any trace, and transposed
        gram[(f * n + j) * n + i] =
            static_cast<Scalar>(1.75 * std::exp(-layer.squared_distance(f, i, j) / (layer.sigma[f] * layer.sigma[f])));
      }
    }
  }
  EntropyProblem<Scalar> const problem{{gram.data(), 3, n, n * n, 1, n}, order, entropy.data()};
  CHECK(run(problem, {13}) == 0);
  for (Index f = 0; f < 3; ++f) CHECK_NEAR(entropy[f], expected_entropies(layer, f, order.alpha).own, limit);
}

void given_matrices_agree_with_float64() {
  for (Index n : {1, 2, 31, 64, 100, 130}) {
    for (EntropyOrder const& order : {kOrder101, kSquare}) check_matrices<float>(n, order, tolerance(n));
    if (n > 64) continue;
    for (EntropyOrder const& order : {kShannon, kSquare, kCube}) check_matrices<double>(n, order, 1e-10);
  }
}

void alignments_are_their_definition() {
  std::vector<float> const multiples{0.3F, 0.7F, 1, 1.5F, 2, 3, 5, 7, 9, 10, 20};
  auto const widths = static_cast<Index>(multiples.size());
  for (Index n : {1, 29, 60, 100, 140}) {
    for (bool per_filter : {false, true}) {
      for (bool gram : {false, true}) {
        Layer<float> layer(n, 3, per_filter ? 7 : 400, 4, Data::kRectified, 9);
        if (gram) layer = with_label_kernel(std::move(layer), 0.5F, 0.5F);
        Index const rows = per_filter ? layer.filters : 1;
        std::vector<float> mean(rows), alignment(rows * widths);
        AlignmentProblem<float> const problem{layer.view(), layer.label_view(), multiples.data(), widths,
                                              per_filter,   mean.data(),        alignment.data()};
        run(problem, {14});
        for (Index row = 0; row < rows; ++row) {
          Alignments const expected = expected_alignments(layer, multiples, per_filter, row);
          CHECK_NEAR(mean[row], expected.mean_distance, 2e-6 * expected.mean_distance);
          for (Index m = 0; m < widths; ++m) {
            CHECK_NEAR(alignment[row * widths + m], expected.alignment[m], 1e-5);
          }
        }
      }
    }
  }
}

// The layer as one map: 10 000 positions for each of its parts, with equal terms.
void alignments_of_long_maps_are_their_definition() {
  Layer<float> layer(12, 2, cuda::kMostSplits * 5000, 4, Data::kLine, 2);
  std::vector<float> const multiples{0.3F, 0.7F, 1, 2, 5};
  std::vector<float> mean(1), alignment(5);
  run(AlignmentProblem<float>{layer.view(), layer.label_view(), multiples.data(), 5, false, mean.data(),
                              alignment.data()},
      {14});
  Alignments const expected = expected_alignments(layer, multiples, false, 0);
  CHECK_NEAR(mean[0], expected.mean_distance, 2e-6 * expected.mean_distance);
  for (Index m = 0; m < 5; ++m) CHECK_NEAR(alignment[m], expected.alignment[m], 1e-5);
}

// Every parts-th test, from number `part` on, so that processes can share them.
int part = 0, parts = 1, num_tests = 0;

void timed(char const* name, void (*test)()) {
  if (num_tests++ % parts != part) return;
  auto const start = std::chrono::steady_clock::now();
  test();
  std::printf("%6.2f s  %s\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), name);
}

}  // namespace
}  // namespace hrel

#define HREL_TIMED(test) ::hrel::timed(#test, ::hrel::test)

int main(int count, char** arguments) {
  if (count == 3) {
    hrel::part = std::atoi(arguments[1]);
    hrel::parts = std::atoi(arguments[2]);
  }
  HREL_TIMED(every_size_agrees_with_float64);
  HREL_TIMED(every_kind_of_data_agrees_with_float64);
  HREL_TIMED(classes_of_every_size_agree_with_float64);
  HREL_TIMED(seven_large_classes_agree_with_float64);
  HREL_TIMED(empty_classes_change_nothing);
  HREL_TIMED(other_orders_agree_with_float64);
  HREL_TIMED(float64_agrees_to_its_own_precision);
  HREL_TIMED(a_label_kernel_takes_the_place_of_the_classes);
  HREL_TIMED(an_indefinite_joint_matrix_is_redone_by_eigenvalues);
  HREL_TIMED(products_agree_with_float64);
  HREL_TIMED(clusters_far_from_the_first_sample_agree_with_float64);
  HREL_TIMED(split_positions_agree_with_float64);
  HREL_TIMED(sums_of_equal_terms_agree_with_float64);
  HREL_TIMED(one_filter_and_many_give_the_same_bits);
  HREL_TIMED(a_value_that_is_not_finite_spoils_its_own_filter_alone);
  HREL_TIMED(half_precision_and_any_strides_are_read_in_place);
  HREL_TIMED(given_matrices_agree_with_float64);
  HREL_TIMED(alignments_are_their_definition);
  HREL_TIMED(alignments_of_long_maps_are_their_definition);
  return hrel::test::result();
}
