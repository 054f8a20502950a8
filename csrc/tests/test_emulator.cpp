// The emulator itself: right kernels are right in every order, planted faults are named, deleted barriers are seen.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <set>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/check.h"
#include "tests/cuda_emulator.h"

namespace {

using hrel::emulator::Schedule;
using hrel::emulator::Site;

constexpr unsigned kSeeds = 8;
constexpr unsigned kFull = 0xffffffffu;

template <class T>
T* shared() {
  return reinterpret_cast<T*>(hrel::emulator::shared_memory());
}

// Line of the barrier or collective that a kernel names: `marked = __LINE__ + 1;` stands before it.
unsigned marked = 0;
unsigned marked_second = 0;

std::string at(unsigned line) { return std::string(" at ") + __FILE__ + ":" + std::to_string(line); }

// What launch() throws for one block; "" if nothing.
template <class Kernel>
std::string fault_of(unsigned num_threads, unsigned seed, Kernel kernel) {
  try {
    hrel::emulator::launch(1, num_threads, 64, Schedule{seed}, kernel);
  } catch (std::runtime_error const& error) {
    return error.what();
  }
  return "";
}

void check_fault(std::string const& message, std::string const& expected, int line) {
  bool const found = message.find(expected) != std::string::npos;
  if (!found) std::printf("got '%s', expected '%s'\n", message.c_str(), expected.c_str());
  hrel::test::check(found, "the fault that was planted", __FILE__, line);
}

// Sum over a block: shuffles inside a warp, shared memory across warps.
__global__ void block_sum(float const* values, float* sums) {
  float* const of_warp = shared<float>();
  float sum = __ldg(values + blockIdx.x * blockDim.x + threadIdx.x);
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFull, sum, offset);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) sum += of_warp[warp];
  sums[blockIdx.x] = sum;
}

void test_block_sum_is_right_in_every_order() {
  constexpr unsigned kBlocks = 3, kThreads = 128;
  std::vector<float> values(kBlocks * kThreads);
  for (unsigned i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    std::vector<float> sums(kBlocks, NAN);
    hrel::emulator::launch(kBlocks, kThreads, kThreads / 32 * sizeof(float), Schedule{seed}, block_sum, values.data(),
                           sums.data());
    for (unsigned block = 0; block < kBlocks; ++block) {
      CHECK_NEAR(sums[block], kThreads * (block * kThreads + (kThreads - 1) / 2.0), 0);
    }
    CHECK(hrel::emulator::counters().barriers == kBlocks);
    CHECK(hrel::emulator::counters().collectives == kBlocks * 5 * kThreads / 32);
    CHECK(hrel::emulator::counters().switches == kBlocks * kThreads * 7);  // start, five shuffles, one barrier
  }
}

__global__ void warp_intrinsics(unsigned* num_wrong) {
  unsigned const lane = threadIdx.x % 32;
  auto const expect = [&](bool holds) { *num_wrong += !holds; };
  expect(__shfl_sync(kFull, 10 * lane, 7) == 70);
  expect(__shfl_sync(kFull, 10 * lane, 39) == 70);
  expect(__shfl_xor_sync(kFull, 1.5 * lane, 3) == 1.5 * (lane ^ 3));
  expect(__shfl_down_sync(kFull, lane, 4) == (lane < 28 ? lane + 4 : lane));
  expect(__any_sync(kFull, lane == 31) == 1);
  expect(__any_sync(kFull, false) == 0);
  expect(__all_sync(kFull, lane < 32) == 1);
  expect(__all_sync(kFull, lane != 5) == 0);
  expect(__ballot_sync(kFull, lane % 2) == 0xaaaaaaaau);
  __syncwarp();
  // Two halves that part ways and never name each other.
  if (lane < 16) {
    for (unsigned i = 0; i < 3; ++i) expect(__shfl_xor_sync(0x0000ffffu, lane + i, 1) == (lane ^ 1) + i);
  } else {
    expect(__all_sync(0xffff0000u, lane >= 16) == 1);
  }
  expect(__shfl_sync(kFull, lane, static_cast<int>(lane + 1)) == (lane + 1) % 32);
  // Each warp votes, in turn, alone; whoever runs ahead to the next vote must not change the last.
  for (unsigned warp = 0; warp <= blockDim.x / 32; ++warp) {
    expect((__syncthreads_or(threadIdx.x == 32 * warp + 9) != 0) == (warp < blockDim.x / 32));
  }
}

void test_warp_intrinsics_are_right_in_every_order() {
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    unsigned num_wrong = 0;
    hrel::emulator::launch(1, 96, 0, Schedule{seed}, warp_intrinsics, &num_wrong);
    CHECK(num_wrong == 0);
  }
}

struct Fragment {
  float row;
  double column;
};

__global__ void gather_fragments(unsigned* num_wrong) {
  unsigned const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (unsigned step = 0; step < 3; ++step) {
    auto const all = hrel::emulator::gather_warp(Fragment{static_cast<float>(lane + step), 100.0 * warp});
    for (unsigned other = 0; other < 32; ++other) {
      *num_wrong += all[other].row != static_cast<float>(other + step) || all[other].column != 100.0 * warp;
    }
  }
}

void test_gather_warp_gives_the_values_of_all_lanes() {
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    unsigned num_wrong = 0;
    hrel::emulator::launch(1, 64, 0, Schedule{seed}, gather_fragments, &num_wrong);
    CHECK(num_wrong == 0);
  }
}

__global__ void spoil_shared_memory(unsigned* num_wrong) {
  float* const values = shared<float>();
  *num_wrong += reinterpret_cast<std::uintptr_t>(values) % 16 != 0;
  *num_wrong += !std::isnan(values[threadIdx.x]);
  values[threadIdx.x] = 0;
}

void test_shared_memory_is_nan_at_the_start_of_every_block() {
  unsigned num_wrong = 0;
  hrel::emulator::launch(dim3(2, 2), 33, 33 * sizeof(float), Schedule{1}, spoil_shared_memory, &num_wrong);
  CHECK(num_wrong == 0);
}

__global__ void note_indices(std::set<std::vector<unsigned>>* met) {
  met->insert({blockIdx.x, blockIdx.y, threadIdx.x, threadIdx.y, threadIdx.z});
  __syncthreads();
  CHECK(met->count({blockIdx.x, blockIdx.y, threadIdx.x, threadIdx.y, threadIdx.z}) == 1);
  CHECK(blockDim.x == 5 && blockDim.y == 3 && blockDim.z == 2 && gridDim.x == 2 && gridDim.y == 3);
}

void test_every_index_of_grid_and_block_occurs() {
  std::set<std::vector<unsigned>> met;
  hrel::emulator::launch(dim3(2, 3), dim3(5, 3, 2), 0, Schedule{}, note_indices, &met);
  CHECK(met.size() == 2 * 3 * 5 * 3 * 2);
  CHECK(met.count({1, 2, 4, 2, 1}) == 1);
}

__global__ void take_ticket(unsigned* tickets, unsigned* order, bool* last) {
  if (threadIdx.x != 0) return;
  __threadfence();
  unsigned const ticket = atomicAdd(tickets, 1);
  order[ticket] = blockIdx.x;
  *last |= ticket == gridDim.x - 1;
}

void test_blocks_take_tickets_in_another_order_for_another_seed() {
  constexpr unsigned kBlocks = 16;
  std::set<std::vector<unsigned>> orders;
  for (unsigned repeat = 0; repeat < 2; ++repeat) {
    for (unsigned seed = 0; seed < kSeeds; ++seed) {
      unsigned tickets = 0;
      bool last = false;
      std::vector<unsigned> order(kBlocks);
      hrel::emulator::launch(kBlocks, 32, 0, Schedule{seed}, take_ticket, &tickets, order.data(), &last);
      CHECK(tickets == kBlocks && last);
      CHECK(std::set<unsigned>(order.begin(), order.end()).size() == kBlocks);
      orders.insert(order);
    }
  }
  CHECK(orders.size() == kSeeds);  // and the same seed gives the same order again
}

struct Step {
  unsigned thread;
  unsigned phase;
};

__global__ void note_phases(std::vector<Step>* steps) {
  for (unsigned phase = 0; phase < 4; ++phase) {
    steps->push_back({threadIdx.x, phase});
    __syncwarp();
  }
}

void test_odd_seeds_let_warps_drift_apart_and_even_seeds_mix_them() {
  std::set<std::vector<unsigned>> lane_orders;
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    std::vector<Step> steps;
    hrel::emulator::launch(1, 96, 0, Schedule{seed}, note_phases, &steps);
    CHECK(steps.size() == 4 * 96);
    unsigned num_changes = 0;  // of the warp that runs
    std::vector<unsigned> lanes;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      if (i > 0) num_changes += steps[i].thread / 32 != steps[i - 1].thread / 32;
      if (steps[i].phase == 3 && steps[i].thread < 32) lanes.push_back(steps[i].thread);
    }
    CHECK(seed % 2 == 1 ? num_changes == 2 : num_changes > 20);
    lane_orders.insert(lanes);
  }
  CHECK(lane_orders.size() == kSeeds);
}

// Two barriers: the first lets the neighbour's value be read, the second lets it be overwritten.
__global__ void reverse_twice(float const* values, float* reversed) {
  float* const buffer = shared<float>();
  unsigned const other = blockDim.x - 1 - threadIdx.x;
  buffer[threadIdx.x] = values[threadIdx.x];
  marked = __LINE__ + 1;
  __syncthreads();
  float const value = buffer[other];
  marked_second = __LINE__ + 1;
  __syncthreads();
  buffer[threadIdx.x] = 2 * value;
  reversed[threadIdx.x] = buffer[threadIdx.x];
}

bool reverses(Schedule const& schedule) {
  constexpr unsigned kThreads = 64;
  std::vector<float> values(kThreads), reversed(kThreads, NAN);
  for (unsigned i = 0; i < kThreads; ++i) values[i] = static_cast<float>(1 + i);
  hrel::emulator::launch(1, kThreads, kThreads * sizeof(float), schedule, reverse_twice, values.data(),
                         reversed.data());
  for (unsigned i = 0; i < kThreads; ++i) {
    if (!(reversed[i] == 2 * values[kThreads - 1 - i])) return false;
  }
  return true;
}

unsigned num_orders_that_notice_the_loss_of(Site const& site, bool (*holds)(Schedule const&)) {
  unsigned noticed = 0;
  for (unsigned seed = 0; seed < kSeeds; ++seed) noticed += !holds({seed, site});
  return noticed;
}

void test_sites_are_the_two_barriers_and_each_is_needed() {
  hrel::emulator::clear_sites();
  for (unsigned seed = 0; seed < kSeeds; ++seed) CHECK(reverses({seed}));
  std::vector<Site> const sites = hrel::emulator::sites();
  CHECK(sites == (std::vector<Site>{{__FILE__, marked}, {__FILE__, marked_second}}));
  for (Site const& site : sites) {
    CHECK(num_orders_that_notice_the_loss_of(site, reverses) > 0);
    CHECK(hrel::emulator::sites().size() == 2);  // a deleted barrier is still met
  }
  CHECK(num_orders_that_notice_the_loss_of({__FILE__, 1}, reverses) == 0);
  hrel::emulator::clear_sites();
  CHECK(hrel::emulator::sites().empty());
}

// Warps in lockstep by their shuffles: only warps that drift apart show that the barrier is gone.
__global__ void pass_to_next_warp(float* received) {
  float* const buffer = shared<float>();
  float value = 1;
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kFull, value, offset);
  if (threadIdx.x % 32 == 0) buffer[threadIdx.x / 32] = value;
  __syncthreads();
  for (int repeat = 0; repeat < 20; ++repeat) value = __shfl_xor_sync(kFull, value, 1);
  received[threadIdx.x] = value + buffer[(threadIdx.x / 32 + 1) % 2];
}

bool passes(Schedule const& schedule) {
  std::vector<float> received(64, NAN);
  hrel::emulator::launch(1, 64, 2 * sizeof(float), schedule, pass_to_next_warp, received.data());
  for (float value : received) {
    if (!(value == 64)) return false;
  }
  return true;
}

void test_drifting_warps_notice_a_barrier_that_shuffles_hide() {
  hrel::emulator::clear_sites();
  for (unsigned seed = 0; seed < kSeeds; ++seed) CHECK(passes({seed}));
  CHECK(hrel::emulator::sites().size() == 1);
  CHECK(num_orders_that_notice_the_loss_of(hrel::emulator::sites().front(), passes) >= kSeeds / 2);
}

// The way of a wrapper: its caller is the site.
void team_barrier(std::source_location where = std::source_location::current()) {
  hrel::emulator::warp_barrier(where);
  hrel::emulator::block_barrier(where);
}

__global__ void reverse_warp(unsigned* reversed) {
  unsigned* const buffer = shared<unsigned>();
  marked_second = __LINE__ + 1;
  team_barrier();
  buffer[threadIdx.x] = threadIdx.x;
  marked = __LINE__ + 1;
  __syncwarp();
  reversed[threadIdx.x] = buffer[31 - threadIdx.x];
}

bool reverses_warp(Schedule const& schedule) {
  std::vector<unsigned> reversed(32);
  hrel::emulator::launch(1, 32, 32 * sizeof(unsigned), schedule, reverse_warp, reversed.data());
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (reversed[lane] != 31 - lane) return false;
  }
  return true;
}

void test_a_deleted_syncwarp_is_noticed() {
  hrel::emulator::clear_sites();
  for (unsigned seed = 0; seed < kSeeds; ++seed) CHECK(reverses_warp({seed}));
  CHECK(hrel::emulator::sites() == (std::vector<Site>{{__FILE__, marked_second}, {__FILE__, marked}}));
  CHECK(num_orders_that_notice_the_loss_of({__FILE__, marked}, reverses_warp) == kSeeds);
  CHECK(reverses_warp({0, Site{__FILE__, marked_second}}));
  CHECK(hrel::emulator::counters().barriers == 0 && hrel::emulator::counters().collectives == 1);
}

__global__ void exit_before_barrier() {
  // An object with a destructor: the leak check of the address sanitizer proves that a fault unwinds its thread.
  std::vector<float> const own(16, 1.0f);
  if (threadIdx.x == 5 || threadIdx.x == 40) return;
  marked = __LINE__ + 1;
  __syncthreads();
  if (own[0] != 1) throw std::logic_error("unreachable");
}

__global__ void most_exit_before_barrier() {
  if (threadIdx.x > 1) return;
  __syncthreads();
}

__global__ void different_barriers() {
  if (threadIdx.x < 7) {
    marked = __LINE__ + 1;
    __syncthreads();
  } else {
    marked_second = __LINE__ + 1;
    __syncthreads();
  }
}

__global__ void different_collectives() {
  if (threadIdx.x % 32 < 8) {
    __shfl_sync(kFull, threadIdx.x, 0);
  } else {
    __shfl_xor_sync(kFull, threadIdx.x, 1);
  }
}

__global__ void different_masks() { __syncwarp(threadIdx.x < 16 ? 0x7fffffffu : kFull); }

__global__ void wait_for_exited_lane() {
  if (threadIdx.x == 9) return;
  marked = __LINE__ + 1;
  __shfl_sync(kFull, threadIdx.x, 0);
}

__global__ void wait_for_lane_at_barrier() {
  if (threadIdx.x != 35) {
    marked = __LINE__ + 1;
    __syncwarp();
  }
  marked_second = __LINE__ + 1;
  __syncthreads();
}

__global__ void outside_own_mask() { __syncwarp(threadIdx.x == 3 ? 0xfffffff7u : kFull); }

__global__ void read_outside_mask() {
  if (threadIdx.x < 16) __shfl_sync(0x0000ffffu, threadIdx.x, 20);
}

__global__ void gather_short_warp() { hrel::emulator::gather_warp(threadIdx.x); }

__global__ void throw_own_error() {
  __syncthreads();
  if (threadIdx.x == 11) throw std::runtime_error("own error");
  __syncthreads();
}

void test_every_planted_fault_is_named() {
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    std::string message = fault_of(64, seed, exit_before_barrier);
    check_fault(message, "block (0, 0): threads 5, 40 exited before __syncthreads" + at(marked) + ", where 62 wait",
                __LINE__);
    message = fault_of(64, seed, most_exit_before_barrier);
    check_fault(message, "threads 2, 3, 4, 5 and 58 more exited before __syncthreads", __LINE__);

    message = fault_of(64, seed, different_barriers);
    check_fault(message, "threads at different barriers: thread ", __LINE__);
    check_fault(message, " in __syncthreads" + at(marked), __LINE__);
    check_fault(message, " in __syncthreads" + at(marked_second), __LINE__);

    message = fault_of(64, seed, different_collectives);
    check_fault(message, "lanes of one warp at different collectives: thread ", __LINE__);
    check_fault(message, " in __shfl_sync at ", __LINE__);
    check_fault(message, " in __shfl_xor_sync at ", __LINE__);

    message = fault_of(32, seed, different_masks);
    check_fault(message, "lanes of one warp with different masks: thread ", __LINE__);
    check_fault(message, " with mask 0x7fffffff", __LINE__);
    check_fault(message, " with mask 0xffffffff", __LINE__);

    message = fault_of(32, seed, wait_for_exited_lane);
    check_fault(message, "in __shfl_sync" + at(marked) + " waits for thread 9, which has exited", __LINE__);
    message = fault_of(64, seed, wait_for_lane_at_barrier);
    check_fault(message,
                "in __syncwarp" + at(marked) + " waits for thread 35, which is in __syncthreads" + at(marked_second),
                __LINE__);

    check_fault(fault_of(32, seed, outside_own_mask), "thread 3 is not in the mask 0xfffffff7 of __syncwarp", __LINE__);
    check_fault(fault_of(32, seed, read_outside_mask), " reads lane 20, which is not in the mask 0x0000ffff", __LINE__);
    check_fault(fault_of(48, seed, gather_short_warp), " needs a full warp", __LINE__);
    check_fault(fault_of(32, seed, throw_own_error), "own error", __LINE__);
    CHECK(reverses({seed}));  // the machine is whole again
  }
}

void test_a_fault_names_its_block() {
  std::string message;
  try {
    hrel::emulator::launch(dim3(2, 3), 32, 0, Schedule{3}, [] {
      if (blockIdx.x == 1 && blockIdx.y == 2 && threadIdx.x == 0) return;
      __syncthreads();
    });
  } catch (std::runtime_error const& error) {
    message = error.what();
  }
  check_fault(message, "block (1, 2): thread 0 exited before __syncthreads", __LINE__);
}

void test_a_launch_of_no_or_too_many_threads_is_refused() {
  check_fault(fault_of(0, 0, [] {}), "1 to 1024 threads", __LINE__);
  check_fault(fault_of(1025, 0, [] {}), "1 to 1024 threads", __LINE__);
  CHECK(fault_of(1024, 0, [] { __syncthreads(); }).empty());
}

void test_types_and_scalar_intrinsics() {
  static_assert(alignof(float2) == 8 && sizeof(float2) == 8);
  static_assert(alignof(float4) == 16 && sizeof(float4) == 16);
  static_assert(alignof(uint4) == 16 && sizeof(uint4) == 16);
  float4 const quad = make_float4(1, 2, 3, 4);
  CHECK(__ldg(&quad).w == 4 && __ldcg(&quad).x == 1);
  CHECK(__float_as_uint(1.0f) == 0x3f800000u && __uint_as_float(0x40000000u) == 2.0f);
  CHECK(__fdividef(1.0f, 4.0f) == 0.25f);
  CHECK_NEAR(rsqrtf(16.0f), 0.25, 1e-7);
  CHECK_NEAR(__expf(1.0f), std::exp(1.0), 1e-6);
}

}  // namespace

int main() {
  test_block_sum_is_right_in_every_order();
  test_warp_intrinsics_are_right_in_every_order();
  test_gather_warp_gives_the_values_of_all_lanes();
  test_shared_memory_is_nan_at_the_start_of_every_block();
  test_every_index_of_grid_and_block_occurs();
  test_blocks_take_tickets_in_another_order_for_another_seed();
  test_odd_seeds_let_warps_drift_apart_and_even_seeds_mix_them();
  test_sites_are_the_two_barriers_and_each_is_needed();
  test_drifting_warps_notice_a_barrier_that_shuffles_hide();
  test_a_deleted_syncwarp_is_noticed();
  test_every_planted_fault_is_named();
  test_a_fault_names_its_block();
  test_a_launch_of_no_or_too_many_threads_is_refused();
  test_types_and_scalar_intrinsics();
  return hrel::test::result();
}
