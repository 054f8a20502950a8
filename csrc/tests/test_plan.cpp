// How problems are cut into launches, on devices that are only numbers.
// SPDX-License-Identifier: MIT
#include "check.h"
#include "cuda/plan.h"

namespace hrel::cuda {
namespace {

constexpr DeviceLimits kH100{132, 227 * 1024}, kSmallCard{20, 99 * 1024};

void the_smallest_kernel_that_holds_the_samples_is_taken() {
  CHECK(kernel_size(1) == 32);
  CHECK(kernel_size(32) == 32);
  CHECK(kernel_size(33) == 64);
  CHECK(kernel_size(65) == 128);
  CHECK(kernel_size(128) == 128);
  CHECK(kernel_size(129) == 256);
}

void tiles_hold_the_lower_triangle_and_their_padding() {
  CHECK(elements_of_tiles(1) == 256);
  CHECK(elements_of_tiles(16) == 256);
  CHECK(elements_of_tiles(17) == 3 * 256);
  CHECK(elements_of_tiles(128) == 36 * 256);
}

void the_largest_size_fits_into_shared_memory() {
  CHECK(largest_size(kH100) == 256);
  Index const n = largest_size(kSmallCard);
  CHECK(n > 128 && n < 256);
  CHECK(elements_of_tiles(n) * 4 + kSharedBytesBesideMatrix <= kSmallCard.shared_bytes);
  CHECK(elements_of_tiles(n + 1) * 4 + kSharedBytesBesideMatrix > kSmallCard.shared_bytes);
  CHECK(largest_size({1, 48 * 1024}) == 48);
  bool refused = false;
  try {
    check_size(257, kH100);
  } catch (std::invalid_argument const& error) {
    refused = std::string(error.what()) == "num_samples must be at most 256 on this device, got 257";
  }
  CHECK(refused);
  check_size(256, kH100);
}

void positions_are_split_by_their_number_alone() {
  CHECK(num_splits(1) == 1);
  CHECK(num_splits(511) == 1);
  CHECK(num_splits(512) == 2);
  CHECK(num_splits(12544) == 25);
  CHECK(num_splits(50176) == 32);
  for (Index filters : {1, 7, 64, 5000}) CHECK(plan_slots(128, filters, 12544).splits == 25);
  CHECK(!needs_slots(128, 511));
  CHECK(needs_slots(128, 512));
  CHECK(needs_slots(129, 1));
}

void no_sum_grows_with_the_map() {
  CHECK(num_rounds(1) == 1);
  CHECK(num_rounds(kMostSplits * kLongestSum) == 1);
  CHECK(num_rounds(kMostSplits * kLongestSum + 1) == 2);
  for (Index positions : {1023, 1024, 1535, 50176, 802816, 100000007}) {
    Index const parts = num_splits(positions) * num_rounds(positions);
    CHECK((positions + parts - 1) / parts <= kLongestSum);
  }
}

void launches_cover_all_rows_within_the_workspace() {
  for (Index n : {1, 31, 128, 200, 256}) {
    for (Index rows : {1, 2, 63, 64, 513, 100000}) {
      for (Index positions : {1, 3136, 50176}) {
        SlotPlan const plan = plan_slots(n, rows, positions);
        CHECK(plan.slot_bytes == num_splits(positions) * elements_of_tiles(n) * 4);
        CHECK(plan.rows_per_launch >= 1 && plan.rows_per_launch <= rows);
        CHECK(plan.workspace_bytes() <= kMostWorkspaceBytes || plan.rows_per_launch == 1);
        Index const launches = (rows + plan.rows_per_launch - 1) / plan.rows_per_launch;
        CHECK(rows - (launches - 1) * plan.rows_per_launch > 0);   // none is empty
        CHECK(launches * plan.rows_per_launch - rows < launches);  // and they are of equal size
      }
    }
  }
}

void the_workspace_does_not_grow_with_the_number_of_filters() {
  for (Index n : {13, 128, 256}) {
    CHECK(plan_exact(n, 1000, kH100).workspace_bytes == plan_exact(n, 100000, kH100).workspace_bytes);
    CHECK(plan_exact(n, 100000, kH100).workspace_bytes <= kMostWorkspaceBytes);
    CHECK(plan_exact(n, 100000, kH100).blocks <= kH100.multiprocessors);
    CHECK(plan_exact(n, 1, kH100).blocks == 1);
  }
}

void widths_are_shared_out_until_the_chip_is_full() {
  CHECK(width_slices(1, 300, kH100) == 38);   // the layer: all groups of eight widths at once
  CHECK(width_slices(64, 300, kH100) == 5);   // 320 blocks
  CHECK(width_slices(512, 300, kH100) == 1);  // filters enough
  CHECK(width_slices(1, 1, kH100) == 1);
}

}  // namespace
}  // namespace hrel::cuda

int main() {
  using namespace hrel::cuda;
  the_smallest_kernel_that_holds_the_samples_is_taken();
  tiles_hold_the_lower_triangle_and_their_padding();
  the_largest_size_fits_into_shared_memory();
  positions_are_split_by_their_number_alone();
  no_sum_grows_with_the_map();
  launches_cover_all_rows_within_the_workspace();
  the_workspace_does_not_grow_with_the_number_of_filters();
  widths_are_shared_out_until_the_chip_is_full();
  return hrel::test::result();
}
