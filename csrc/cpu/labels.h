// The label kernel by its elements that are not 0. Samples stand sorted by class, so that those of a class form one
// block. SPDX-License-Identifier: MIT
#pragma once
#include "cpu/triangle.h"
#include "numerics/problem.h"

namespace hrel::cpu {

// Which sample, of those sorted by class, stands at a position among the classes.
struct SortedSamples {
  HREL_HD Index operator[](Index position) const { return position; }
};

// Element (a, b) of a symmetric matrix in its lower triangle.
HREL_HD Index symmetric_offset(Index a, Index b) { return a < b ? element_offset(b, a) : element_offset(a, b); }

// Calls visit(offset, weight, copies) for the elements of the lower triangle whose label kernel is not 0.
template <class Scalar, class Visit, class Samples = SortedSamples>
HREL_HD void for_each_labelled_element(LabelView<Scalar> const& labels, Index n, Visit const& visit,
                                       Samples const& samples = {}) {
  if (labels.gram != nullptr) {
    for (Index row = 0; row < n; ++row) {
      for (Index column = 0; column <= row; ++column) {
        visit(element_offset(row, column), labels.gram[row * n + column], row == column ? 1 : 2);
      }
    }
    return;
  }
  for (Index c = 0; labels.class_offsets[c] < n; ++c) {
    for (Index row = labels.class_offsets[c]; row < labels.class_offsets[c + 1]; ++row) {
      for (Index column = labels.class_offsets[c]; column <= row; ++column) {
        visit(symmetric_offset(samples[row], samples[column]), Scalar(1), row == column ? 1 : 2);
      }
    }
  }
}

}  // namespace hrel::cpu
