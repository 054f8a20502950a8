// Every ISA level that this processor has, against a scalar float64 computation of the same entropies and alignments.
// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/launch.h"
#include "numerics/entropy.h"

namespace hrel {
namespace {

// Weights of the rational function for alpha = 1.01, as hrel_ext/_rational.py fits them; off by 2.6e-8 nats an
// eigenvalue.
constexpr Rational kRational101{
    {1.0340182341810706, 0.29040293642334947, -0.020818918386567464},
    {5.000000000000002e-07, 9.013210057872118e-06, 7.423729481901062e-05, 0.00042440662534676314, 0.001941518939346035,
     0.007629315662428177, 0.02696127049472428, 0.08942507490188116, 0.2975205367569471, 1.1854853521140942},
    {-1.5930023657776324e-06, -1.9102682302455953e-05, -0.00012768016371684238, -0.0006347830601101991,
     -0.002618008024554605, -0.009508572882072805, -0.03179206868028965, -0.10345136194191341, -0.3653523150279282,
     -1.9303858530088769}};

enum class Data { kGauss, kRectified, kDead, kConstant, kNearDuplicates, kOutlier, kLine, kTwoGroups };
constexpr Data kAllData[] = {Data::kGauss,          Data::kRectified, Data::kDead, Data::kConstant,
                             Data::kNearDuplicates, Data::kOutlier,   Data::kLine, Data::kTwoGroups};

template <class Scalar>
struct Layer {
  Index n, filters, features;
  std::vector<Scalar> acts;            // [N, F, D]
  std::vector<Index> order, offsets;   // [N], [N + 1]
  std::vector<int> labels;             // [N]
  std::vector<Scalar> sigma, gram;     // [F], [N, N] or empty
  std::vector<Scalar> entropy, joint;  // [F]

  Layer(Index n, Index filters, Index features, int classes, Data data, unsigned seed)
      : n(n),
        filters(filters),
        features(features),
        acts(n * filters * features),
        order(n),
        offsets(n + 1, n),
        labels(n),
        sigma(filters),
        entropy(filters),
        joint(filters) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (Index i = 0; i < n; ++i) {
      labels[i] = static_cast<int>(random() % classes);
      for (Index k = 0; k < filters * features; ++k) {
        double value = normal(random);
        if (data == Data::kRectified) value = std::max(0.0, value);
        if (data == Data::kDead) value = 0;
        if (data == Data::kConstant) value = 3.25;
        if (data == Data::kNearDuplicates) value *= 1e-3;
        if (data == Data::kOutlier && i == n / 2) value += 1e4;
        if (data == Data::kLine) value = static_cast<double>(i) / static_cast<double>(n);
        if (data == Data::kTwoGroups) value = static_cast<double>(i % 2);
        acts[i * filters * features + k] = static_cast<Scalar>(value);
      }
    }
    for (Index f = 0; f < filters; ++f) {
      sigma[f] =
          static_cast<Scalar>(std::sqrt(static_cast<double>(features)) * (0.5 + 0.25 * static_cast<double>(f % 7)));
    }
    std::iota(order.begin(), order.end(), Index{0});
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return labels[a] < labels[b]; });
    offsets[0] = 0;
    for (Index i = 1, c = 1; i < n; ++i) {
      if (labels[order[i]] != labels[order[i - 1]]) offsets[c++] = i;
    }
  }

  ActivationView<Scalar> view() const { return {acts.data(), n, filters, features, filters * features, features, 1}; }
  LabelView<Scalar> label_view() const { return {order.data(), offsets.data(), gram.empty() ? nullptr : gram.data()}; }

  RelevanceProblem<Scalar> problem(EntropyOrder const& alpha) {
    return {view(), label_view(), sigma.data(), alpha, entropy.data(), joint.data()};
  }

  double squared_distance(Index f, Index i, Index j) const {
    double sum = 0;
    for (Index p = 0; p < features; ++p) {
      double const difference = static_cast<double>(acts[(i * filters + f) * features + p]) -
                                static_cast<double>(acts[(j * filters + f) * features + p]);
      sum += difference * difference;
    }
    return sum;
  }

  double label(Index i, Index j) const { return gram.empty() ? labels[i] == labels[j] : double(gram[i * n + j]); }
};

// Eigenvalues by cyclic Jacobi, which shares nothing with the code under test.
double entropy_by_jacobi(std::vector<double> a, Index n, double alpha) {
  for (int sweep = 0; sweep < 60; ++sweep) {
    double off = 0;
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < i; ++j) off += a[i * n + j] * a[i * n + j];
    }
    if (off < 1e-30) break;
    for (Index p = 0; p < n; ++p) {
      for (Index q = p + 1; q < n; ++q) {
        double const apq = a[p * n + q];
        if (std::fabs(apq) < 1e-300) continue;
        double const theta = (a[q * n + q] - a[p * n + p]) / (2 * apq);
        double const t = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
        double const c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (Index k = 0; k < n; ++k) {
          double const x = a[k * n + p], y = a[k * n + q];
          a[k * n + p] = c * x - s * y;
          a[k * n + q] = s * x + c * y;
        }
        for (Index k = 0; k < n; ++k) {
          double const x = a[p * n + k], y = a[q * n + k];
          a[p * n + k] = c * x - s * y;
          a[q * n + k] = s * x + c * y;
        }
      }
    }
  }
  std::vector<double> spectrum(n);
  for (Index i = 0; i < n; ++i) spectrum[i] = a[i * n + i];
  return entropy_bits_of_eigenvalues(spectrum.data(), n, alpha);
}

template <class Scalar>
void check_layer(Layer<Scalar>& layer, EntropyOrder const& order, cpu::Level const& level, double tolerance) {
  cpu::relevance(layer.problem(order), cpu::NumThreads{2}, level);
  Index const n = layer.n;
  for (Index f = 0; f < layer.filters; f += 4) {
    std::vector<double> own(n * n), joint(n * n);
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) {
        double const sigma = layer.sigma[f];
        own[i * n + j] = std::exp(-layer.squared_distance(f, i, j) / (sigma * sigma)) / static_cast<double>(n);
        joint[i * n + j] = own[i * n + j] * layer.label(i, j);
      }
    }
    CHECK_NEAR(layer.entropy[f], entropy_by_jacobi(own, n, order.alpha), tolerance);
    CHECK_NEAR(layer.joint[f], entropy_by_jacobi(joint, n, order.alpha), tolerance);
  }
}

EntropyOrder const kOrder101{1.01, Spectrum::kRational, kRational101};
EntropyOrder const kSquare{2, Spectrum::kSquare, {}}, kCube{3, Spectrum::kCube, {}};
EntropyOrder const kShannon{1, Spectrum::kEigenvalues, {}}, kLarge{2.5, Spectrum::kEigenvalues, {}};

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

void a_label_kernel_takes_the_place_of_the_classes(cpu::Level const& level) {
  Layer<float> layer(33, 9, 5, 4, Data::kRectified, 5);
  layer.gram.resize(33 * 33);
  for (Index i = 0; i < 33; ++i) {
    for (Index j = 0; j < 33; ++j) layer.gram[i * 33 + j] = layer.labels[i] == layer.labels[j] ? 1 : 0.25F;
  }
  std::iota(layer.order.begin(), layer.order.end(), Index{0});
  for (EntropyOrder const& order : {kOrder101, kSquare, kCube, kLarge}) check_layer(layer, order, level, 2e-5);
}

void an_indefinite_joint_matrix_is_redone_by_eigenvalues(cpu::Level const& level) {
  Layer<float> layer(33, 3, 5, 4, Data::kGauss, 6);
  layer.gram.assign(33 * 33, -0.9F);  // no kernel: A o B has negative eigenvalues, which count as 0
  for (Index i = 0; i < 33; ++i) layer.gram[i * 33 + i] = 1;
  for (float& sigma : layer.sigma) sigma = 20;
  std::iota(layer.order.begin(), layer.order.end(), Index{0});
  check_layer(layer, kOrder101, level, 2e-5);
}

void one_filter_and_many_give_the_same_bits_on_any_number_of_threads(cpu::Level const& level) {
  Layer<float> all(37, 19, 40, 5, Data::kRectified, 7);
  cpu::relevance(all.problem(kOrder101), cpu::NumThreads{3}, level);
  for (Index f = 0; f < all.filters; ++f) {
    float entropy = -1, joint = -1;
    RelevanceProblem<float> one = all.problem(kOrder101);
    one.acts.data += f * one.acts.filter_stride;
    one.acts.num_filters = 1;
    one.sigma += f;
    one.entropy = &entropy;
    one.joint_entropy = &joint;
    cpu::relevance(one, cpu::NumThreads{1}, level);
    CHECK(entropy == all.entropy[f]);
    CHECK(joint == all.joint[f]);
  }
}

void a_value_that_is_not_finite_spoils_its_own_filter_alone(cpu::Level const& level) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (EntropyOrder const& order : {kOrder101, kSquare, kCube, kLarge}) {
      Layer<float> layer(21, 10, 6, 3, Data::kGauss, 8), clean(21, 10, 6, 3, Data::kGauss, 8);
      layer.acts[(4 * 10 + 6) * 6 + 2] = bad;  // sample 4, filter 6
      cpu::relevance(layer.problem(order), cpu::NumThreads{2}, level);
      cpu::relevance(clean.problem(order), cpu::NumThreads{2}, level);
      for (Index f = 0; f < 10; ++f) {
        CHECK(std::isnan(layer.entropy[f]) == (f == 6));
        CHECK(f == 6 || layer.entropy[f] == clean.entropy[f]);
      }
    }
  }
}

template <class Scalar>
void alignments_are_their_definition(cpu::Level const& level, double tolerance) {
  for (bool per_filter : {false, true}) {
    Layer<Scalar> layer(29, 11, 7, 4, Data::kRectified, 9);
    std::vector<Scalar> const multiples{Scalar(0.3), Scalar(0.7), 1, Scalar(1.5), 2, 3, 5, 7, 9, 10, 20};
    Index const rows = per_filter ? layer.filters : 1, widths = static_cast<Index>(multiples.size()), n = layer.n;
    std::vector<Scalar> mean(rows), alignment(rows * widths);
    cpu::kernel_alignment(
        {layer.view(), layer.label_view(), multiples.data(), widths, per_filter, mean.data(), alignment.data()},
        cpu::NumThreads{2}, level);
    for (Index row = 0; row < rows; ++row) {
      std::vector<double> squared(n * n);
      double sum = 0;
      for (Index i = 0; i < n; ++i) {
        for (Index j = 0; j < n; ++j) {
          for (Index f = per_filter ? row : 0; f < (per_filter ? row + 1 : layer.filters); ++f) {
            squared[i * n + j] += layer.squared_distance(f, i, j);
          }
          sum += std::sqrt(squared[i * n + j]);
        }
      }
      double const distance = sum / static_cast<double>(n * n);
      CHECK_NEAR(mean[row], distance, 1e-6 * distance);
      for (Index m = 0; m < widths; ++m) {
        double const sigma = multiples[m] * distance;
        double product = 0, kernel = 0, label = 0;
        for (Index i = 0; i < n; ++i) {
          for (Index j = 0; j < n; ++j) {
            double const k = std::exp(-squared[i * n + j] / (sigma * sigma)), l = layer.label(i, j);
            product += k * l;
            kernel += k * k;
            label += l * l;
          }
        }
        CHECK_NEAR(alignment[row * widths + m], 2 * std::log2(product / std::sqrt(kernel * label)), tolerance);
      }
    }
  }
}

}  // namespace
}  // namespace hrel

int main() {
  using namespace hrel;
  for (cpu::Level const* level : cpu::usable_levels()) {
    std::printf("%s\n", level->name);
    every_level_agrees_with_scalar_float64(*level);
    a_label_kernel_takes_the_place_of_the_classes(*level);
    an_indefinite_joint_matrix_is_redone_by_eigenvalues(*level);
    one_filter_and_many_give_the_same_bits_on_any_number_of_threads(*level);
    a_value_that_is_not_finite_spoils_its_own_filter_alone(*level);
    alignments_are_their_definition<float>(*level, 1e-5);
    alignments_are_their_definition<double>(*level, 1e-12);
  }
  return test::result();
}
