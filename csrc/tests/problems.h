// Problems with known answers: layers of activations with their labels, and float64 computations of their entropies and
// alignments that share nothing with the code under test. SPDX-License-Identifier: MIT
#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "numerics/entropy.h"
#include "numerics/problem.h"

namespace hrel::test {

// Weights of the rational function for alpha = 1.01, as hrel_ext/_rational.py fits them; off by 2.6e-8 nats an
// eigenvalue.
inline constexpr Rational kRational101{
    {1.0340182341810706, 0.29040293642334947, -0.020818918386567464},
    {5.000000000000002e-07, 9.013210057872118e-06, 7.423729481901062e-05, 0.00042440662534676314, 0.001941518939346035,
     0.007629315662428177, 0.02696127049472428, 0.08942507490188116, 0.2975205367569471, 1.1854853521140942},
    {-1.5930023657776324e-06, -1.9102682302455953e-05, -0.00012768016371684238, -0.0006347830601101991,
     -0.002618008024554605, -0.009508572882072805, -0.03179206868028965, -0.10345136194191341, -0.3653523150279282,
     -1.9303858530088769}};

enum class Data { kGauss, kRectified, kDead, kConstant, kNearDuplicates, kOutlier, kLine, kTwoGroups, kFlat };
inline constexpr Data kAllData[] = {Data::kGauss,    Data::kRectified,      Data::kDead,
                                    Data::kConstant, Data::kNearDuplicates, Data::kOutlier,
                                    Data::kLine,     Data::kTwoGroups,      Data::kFlat};

template <class Scalar>
struct Layer {
  Index n, filters, features;
  std::vector<Scalar> acts;            // [N, F, D]
  std::vector<Index> order, offsets;   // [N], [N + 1]
  std::vector<Index> labels;           // [N]
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
      labels[i] = random() % classes;
      for (Index k = 0; k < filters * features; ++k) {
        double value = normal(random);
        if (data == Data::kRectified) value = std::max(0.0, value);
        if (data == Data::kDead) value = 0;
        if (data == Data::kConstant) value = 3.25;
        if (data == Data::kNearDuplicates) value *= 1e-3;
        if (data == Data::kOutlier && i == n / 2) value += 1e4;
        if (data == Data::kLine) value = static_cast<double>(i) / static_cast<double>(n);
        if (data == Data::kTwoGroups) value = static_cast<double>(i % 2);
        Index const place = i * filters * features + k;
        // One value a map: all terms of a distance are equal, and so are the errors of adding them.
        if (data == Data::kFlat && k % features > 0) value = static_cast<double>(acts[place - 1]);
        acts[place] = static_cast<Scalar>(value);
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

// With a label kernel, which takes the place of the classes, so that the samples stand as they are: 1 for a sample and
// itself, `within` for two of one class, `across` for two of different ones.
inline Layer<float> with_label_kernel(Layer<float> layer, float within, float across) {
  layer.gram.resize(layer.n * layer.n);
  for (Index i = 0; i < layer.n; ++i) {
    for (Index j = 0; j < layer.n; ++j) {
      layer.gram[i * layer.n + j] = i == j ? 1 : layer.labels[i] == layer.labels[j] ? within : across;
    }
  }
  std::iota(layer.order.begin(), layer.order.end(), Index{0});
  return layer;
}

// With a label kernel that is none: A o B has negative eigenvalues, which count as 0.
inline Layer<float> indefinite(Layer<float> layer) {
  layer = with_label_kernel(std::move(layer), -0.9F, -0.9F);
  for (float& sigma : layer.sigma) sigma = 20;
  return layer;
}

// Eigenvalues by cyclic Jacobi, which shares nothing with the code under test.
inline double entropy_by_jacobi(std::vector<double> a, Index n, double alpha) {
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

// The same problem with filter f alone, whose results go to `entropy` and `joint`.
inline RelevanceProblem<float> only_filter(RelevanceProblem<float> problem, Index f, float& entropy, float& joint) {
  problem.acts.data += f * problem.acts.filter_stride;
  problem.acts.num_filters = 1;
  problem.sigma += f;
  problem.entropy = &entropy;
  problem.joint_entropy = &joint;
  return problem;
}

inline EntropyOrder const kOrder101{1.01, Spectrum::kRational, kRational101};
inline EntropyOrder const kSquare{2, Spectrum::kSquare, {}}, kCube{3, Spectrum::kCube, {}};
inline EntropyOrder const kShannon{1, Spectrum::kEigenvalues, {}}, kLarge{2.5, Spectrum::kEigenvalues, {}};

struct Entropies {
  double own, joint;  // bits
};

// S(A_f) and S(A_f, B) by their definition.
template <class Scalar>
Entropies expected_entropies(Layer<Scalar> const& layer, Index f, double alpha) {
  Index const n = layer.n;
  std::vector<double> own(n * n), joint(n * n);
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < n; ++j) {
      double const sigma = layer.sigma[f];
      own[i * n + j] = std::exp(-layer.squared_distance(f, i, j) / (sigma * sigma)) / static_cast<double>(n);
      joint[i * n + j] = own[i * n + j] * layer.label(i, j);
    }
  }
  return {entropy_by_jacobi(own, n, alpha), entropy_by_jacobi(joint, n, alpha)};
}

struct Alignments {
  double mean_distance;
  std::vector<double> alignment;  // [M]
};

// Of the kernel of filter `row`, or of the whole layer, by their definition.
template <class Scalar>
Alignments expected_alignments(Layer<Scalar> const& layer, std::vector<Scalar> const& multiples, bool per_filter,
                               Index row) {
  Index const n = layer.n;
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
  Alignments expected{sum / static_cast<double>(n * n), {}};
  for (Scalar multiple : multiples) {
    double const sigma = multiple * expected.mean_distance;
    double product = 0, kernel = 0, label = 0;
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) {
        double const k = sigma > 0 ? std::exp(-squared[i * n + j] / (sigma * sigma)) : 1, l = layer.label(i, j);
        product += k * l;
        kernel += k * k;
        label += l * l;
      }
    }
    expected.alignment.push_back(2 * std::log2(product / std::sqrt(kernel * label)));
  }
  return expected;
}

}  // namespace hrel::test
