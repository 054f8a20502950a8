// Runs CUDA kernels as plain C++ on one core: a fiber per CUDA thread, in a seeded random order that looks for races.
// SPDX-License-Identifier: MIT
//
// Include it before the kernels. What the order does to a kernel:
// - Shared memory holds 0xFF bytes (NaN) at the start of every block, and ends exactly where the launch said it ends.
// - Blocks run one after another in random order. Threads stop at barriers and warp collectives only, and any thread
//   that may run may be next. Even seeds choose among all threads; odd seeds let one warp at a time run to the next
//   barrier of the block, because the warps of a GPU drift apart.
// - What would hang or be undefined on a GPU is thrown out of launch() as std::runtime_error.
// It sees no missing fence, no bank conflict, no register limit, no misaligned access, and it proves nothing about
// time. Kernels must not be noexcept: after a fault the other threads of the block are unwound by an exception.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define HREL_EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HREL_EMULATOR_ASAN 1
#endif
#endif
#if defined(HREL_EMULATOR_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

// HREL_EMULATOR_UCONTEXT chooses the portable switch on x86-64 too, so that it can be tested there.
#if !defined(__x86_64__) && !defined(HREL_EMULATOR_UCONTEXT)
#define HREL_EMULATOR_UCONTEXT 1
#endif
#if defined(HREL_EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  constexpr dim3(unsigned x_extent = 1, unsigned y_extent = 1, unsigned z_extent = 1)
      : x(x_extent), y(y_extent), z(z_extent) {}
  unsigned x, y, z;
};

struct alignas(8) float2 {
  float x, y;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Set by the scheduler whenever a thread goes on.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace hrel::emulator {

// A barrier in the source; two on one line are one site.
struct Site {
  char const* file;
  unsigned line;

  friend bool operator==(Site const& a, Site const& b) {
    return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
  }
};

struct Schedule {
  unsigned seed = 0;
  std::optional<Site> deleted_barrier = std::nullopt;  // does nothing, for all threads
};

// Of the last launch.
struct Counters {
  std::uint64_t switches = 0;     // times that a thread went on
  std::uint64_t barriers = 0;     // of the whole block
  std::uint64_t collectives = 0;  // of a warp: shuffles, votes, __syncwarp, gather_warp
};

namespace internal {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;
constexpr unsigned kMaxThreads = 1024;     // of a block, on every GPU so far
constexpr unsigned kAllLanes = kWarpSize;  // as a source: not one lane but all
#if defined(HREL_EMULATOR_ASAN)
constexpr std::size_t kStackBytes = std::size_t{1} << 20;  // red zones make frames several times larger
#else
constexpr std::size_t kStackBytes = std::size_t{256} << 10;
#endif

// The stack of one fiber; the page below it faults, so that an overflow cannot pass for a wrong result.
class Stack {
 public:
  Stack() : guard_bytes_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    void* const mapped = mmap(nullptr, guard_bytes_ + kStackBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    mapped_ = static_cast<std::byte*>(mapped);
    mprotect(mapped_, guard_bytes_, PROT_NONE);
  }
  Stack(Stack const&) = delete;
  Stack& operator=(Stack const&) = delete;
  ~Stack() { munmap(mapped_, guard_bytes_ + kStackBytes); }

  std::byte* bottom() const { return mapped_ + guard_bytes_; }

 private:
  std::size_t guard_bytes_;
  std::byte* mapped_;
};

#if defined(HREL_EMULATOR_UCONTEXT)

using Context = ucontext_t;

inline void prepare(Context& context, Stack const& stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack.bottom();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

inline void switch_context(Context& from, Context const& to) { swapcontext(&from, &to); }

#else

using Context = void*;  // the stack pointer; the registers lie on the stack

// Without noipa GCC may conclude that the registers it does not see written keep their values.
#if __has_attribute(noipa)
#define HREL_EMULATOR_NAKED __attribute__((naked, noipa))
#else
#define HREL_EMULATOR_NAKED __attribute__((naked, noinline))
#endif

// System V: the callee saves these six registers, and no others. swapcontext would add a system call per switch.
struct Switch {
  HREL_EMULATOR_NAKED static void run(Context* /*from*/, Context /*to*/) {
    asm("push %rbp\n\t"
        "push %rbx\n\t"
        "push %r12\n\t"
        "push %r13\n\t"
        "push %r14\n\t"
        "push %r15\n\t"
        "mov %rsp, (%rdi)\n\t"
        "mov %rsi, %rsp\n\t"
        "pop %r15\n\t"
        "pop %r14\n\t"
        "pop %r13\n\t"
        "pop %r12\n\t"
        "pop %rbx\n\t"
        "pop %rbp\n\t"
        "ret");
  }
};

inline void prepare(Context& context, Stack const& stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack.bottom() + kStackBytes);
  *--top = nullptr;  // the return address of entry: the end of every backtrace, and the alignment of a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context = top;
}

inline void switch_context(Context& from, Context const& to) { Switch::run(&from, to); }

#endif

// splitmix64: a few instructions, and the same order on every platform.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::size_t below(std::size_t count) {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<std::size_t>(((z ^ (z >> 31)) >> 32) * count >> 32);
  }

 private:
  std::uint64_t state_;
};

enum class State { kReady, kAtBarrier, kInWarp, kDone };

constexpr unsigned line_of_caller(std::source_location where = std::source_location::current()) { return where.line(); }
static_assert(line_of_caller() == __LINE__,
              "barriers are told apart by their lines, which Clang knows from version 16");

struct Place {
  std::string_view intrinsic;
  std::source_location where;

  Site site() const { return {where.file_name(), static_cast<unsigned>(where.line())}; }

  friend bool operator==(Place const& a, Place const& b) {
    return a.site() == b.site() && a.where.column() == b.where.column() && a.intrinsic == b.intrinsic;
  }
};

// What a lane brings to a warp collective and where it wants the answer; the last lane to come copies for all.
struct Exchange {
  unsigned mask = kFullMask;
  unsigned source = kAllLanes;
  std::size_t bytes = 0;  // of one lane
  void const* from = nullptr;
  void* to = nullptr;  // one value, or those of all 32 lanes
};

struct Fiber {
  Stack stack;
  Context context{};
  State state = State::kDone;
  uint3 thread{};
  unsigned linear = 0;
  Place place{};        // where it waits
  Exchange exchange{};  // while kInWarp
  bool vote = false;    // result of __syncthreads_or
#if defined(HREL_EMULATOR_ASAN)
  void* fake_stack = nullptr;
#endif

  unsigned lane() const { return linear % kWarpSize; }
};

// The lanes of one warp that wait for others of theirs at one place, with what the first of them brought.
struct Collective {
  Fiber const* first;
  unsigned lanes;
};

struct Machine {
  std::deque<Fiber> fibers;  // kept from launch to launch, each idle at the end of its loop; never moved
  unsigned num_threads = 0;
  Fiber* current = nullptr;
  Context scheduler{};
  std::function<void()> body;
  std::unique_ptr<std::byte[]> shared;
  std::size_t shared_bytes = 0;

  Schedule schedule;
  Random random{0};
  std::vector<std::vector<Fiber*>> queues;  // of ready threads: one, or one per warp
  std::vector<Fiber*>* queue = nullptr;     // which goes on until it is empty; null: choose one

  unsigned num_at_barrier = 0;
  bool vote = false;  // of those at the barrier

  std::array<std::vector<Collective>, kMaxThreads / kWarpSize> collectives;  // of each warp, not yet complete

  std::exception_ptr failure;
  bool cancelled = false;  // whoever goes on unwinds its stack
  std::vector<Site> sites;
  Counters counters;
#if defined(HREL_EMULATOR_ASAN)
  void* fake_stack = nullptr;  // these three: of the stack that called launch()
  void const* stack_bottom = nullptr;
  std::size_t stack_bytes = 0;
#endif
};

inline Machine machine;

struct Cancelled {};

inline std::string describe(Place const& place) {
  return std::string(place.intrinsic) + " at " + place.where.file_name() + ":" + std::to_string(place.where.line());
}

inline std::string describe(Fiber const& fiber) { return "thread " + std::to_string(fiber.linear); }

inline std::string describe_mask(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

inline std::runtime_error fault(std::string const& message) {
  return std::runtime_error("block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) +
                            "): " + message);
}

// Back to the scheduler; returns when the scheduler lets this thread go on.
inline void leave() {
  Fiber& self = *machine.current;
#if defined(HREL_EMULATOR_ASAN)
  __sanitizer_start_switch_fiber(&self.fake_stack, machine.stack_bottom, machine.stack_bytes);
#endif
  switch_context(self.context, machine.scheduler);
#if defined(HREL_EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(self.fake_stack, &machine.stack_bottom, &machine.stack_bytes);
#endif
}

inline void wait() {
  leave();
  if (machine.cancelled) throw Cancelled();
}

inline void resume(Fiber& fiber) {
  machine.current = &fiber;
  threadIdx = fiber.thread;
  ++machine.counters.switches;
#if defined(HREL_EMULATOR_ASAN)
  __sanitizer_start_switch_fiber(&machine.fake_stack, fiber.stack.bottom(), kStackBytes);
#endif
  switch_context(machine.scheduler, fiber.context);
#if defined(HREL_EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(machine.fake_stack, nullptr, nullptr);
#endif
}

// One round per block; an exception must not leave the fiber, so launch() rethrows it.
inline void fiber_main() {
#if defined(HREL_EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &machine.stack_bottom, &machine.stack_bytes);
#endif
  for (;;) {
    try {
      if (!machine.cancelled) machine.body();
    } catch (Cancelled const&) {
    } catch (...) {
      machine.failure = std::current_exception();
    }
    machine.current->state = State::kDone;
    leave();
  }
}

inline void make_ready(Fiber& fiber) {
  fiber.state = State::kReady;
  machine.queues[machine.queues.size() == 1 ? 0 : fiber.linear / kWarpSize].push_back(&fiber);
}

// Notes the site; true if the schedule deletes it.
inline bool is_deleted(Place const& place) {
  Site const site = place.site();
  if (std::find(machine.sites.begin(), machine.sites.end(), site) == machine.sites.end()) machine.sites.push_back(site);
  return machine.schedule.deleted_barrier == site;
}

inline bool block_barrier(Place const& place, bool vote) {
  if (is_deleted(place)) return vote;
  Fiber& self = *machine.current;
  if (machine.num_at_barrier != 0) {
    auto const other = std::find_if(machine.fibers.begin(), machine.fibers.end(),
                                    [](Fiber const& fiber) { return fiber.state == State::kAtBarrier; });
    if (!(other->place.site() == place.site())) {
      throw fault("threads at different barriers: " + describe(*other) + " in " + describe(other->place) + ", " +
                  describe(self) + " in " + describe(place));
    }
  }
  self.place = place;
  self.state = State::kAtBarrier;
  machine.vote |= vote;
  if (++machine.num_at_barrier == machine.num_threads) {
    for (unsigned i = 0; i < machine.num_threads; ++i) {
      machine.fibers[i].vote = machine.vote;
      make_ready(machine.fibers[i]);
    }
    machine.num_at_barrier = 0;
    machine.vote = false;
    machine.queue = nullptr;  // not the warp that came last, but any
    ++machine.counters.barriers;
  }
  wait();
  return self.vote;
}

inline Fiber& first_lane_of(Fiber const& fiber) { return machine.fibers[fiber.linear / kWarpSize * kWarpSize]; }

// The lanes of this warp that exist: the last warp of a block may be short.
inline unsigned existing_lanes(Fiber const& fiber) {
  unsigned const lanes = std::min(machine.num_threads - first_lane_of(fiber).linear, kWarpSize);
  return kFullMask >> (kWarpSize - lanes);
}

inline bool in_same_collective(Fiber const& a, Fiber const& b) {
  return a.state == State::kInWarp && b.state == State::kInWarp && a.exchange.mask == b.exchange.mask &&
         a.exchange.bytes == b.exchange.bytes && a.place == b.place;
}

template <class Visit>  // visit(Fiber&) for every existing lane that the fiber waits for, itself included
void for_each_named_lane(Fiber const& fiber, Visit const& visit) {
  unsigned const first = first_lane_of(fiber).linear;
  for (unsigned lanes = fiber.exchange.mask & existing_lanes(fiber); lanes != 0; lanes &= lanes - 1) {
    visit(machine.fibers[first + static_cast<unsigned>(std::countr_zero(lanes))]);
  }
}

// Copies what the lanes of one complete collective asked for.
inline void deliver(Fiber const& any_lane) {
  std::size_t const bytes = any_lane.exchange.bytes;
  if (bytes == 0) return;
  std::array<void const*, kWarpSize> from{};
  for_each_named_lane(any_lane, [&](Fiber const& fiber) { from[fiber.lane()] = fiber.exchange.from; });
  void const* gathered = nullptr;
  for_each_named_lane(any_lane, [&](Fiber const& fiber) {
    std::byte* const to = static_cast<std::byte*>(fiber.exchange.to);
    if (fiber.exchange.source != kAllLanes) {
      std::memcpy(to, from[fiber.exchange.source], bytes);
    } else if (gathered != nullptr) {
      std::memcpy(to, gathered, kWarpSize * bytes);
    } else {
      for (unsigned lane = 0; lane < kWarpSize; ++lane) {
        if (from[lane] != nullptr) std::memcpy(to + lane * bytes, from[lane], bytes);
      }
      gathered = to;
    }
  });
}

inline void warp_collective(Place const& place, Exchange const& exchange) {
  Fiber& self = *machine.current;
  unsigned const named = exchange.mask & existing_lanes(self);
  if ((named >> self.lane() & 1u) == 0) {
    throw fault(describe(self) + " is not in the mask " + describe_mask(exchange.mask) + " of " + describe(place));
  }
  if (exchange.source != kAllLanes && (named >> exchange.source & 1u) == 0) {
    throw fault(describe(self) + " reads lane " + std::to_string(exchange.source) + ", which is not in the mask " +
                describe_mask(named) + " of " + describe(place));
  }
  self.place = place;
  self.exchange = exchange;
  self.state = State::kInWarp;
  std::vector<Collective>& waiting = machine.collectives[self.linear / kWarpSize];
  auto own = waiting.end();
  for (auto it = waiting.begin(); it != waiting.end(); ++it) {
    if (in_same_collective(self, *it->first)) {
      own = it;
      continue;
    }
    // Two lanes that name each other never meet; one that does not name this lane may come later.
    unsigned const met = it->lanes & named;
    if (met == 0 || (it->first->exchange.mask >> self.lane() & 1u) == 0) continue;
    Fiber const& other = machine.fibers[first_lane_of(self).linear + static_cast<unsigned>(std::countr_zero(met))];
    bool const same_place = other.place == place && other.exchange.bytes == exchange.bytes;
    throw fault(std::string("lanes of one warp ") +
                (same_place ? "with different masks: " : "at different collectives: ") + describe(other) + " in " +
                describe(other.place) + " with mask " + describe_mask(other.exchange.mask) + ", " + describe(self) +
                " in " + describe(place) + " with mask " + describe_mask(exchange.mask));
  }
  if (own == waiting.end()) own = waiting.insert(own, {&self, 0});
  own->lanes |= 1u << self.lane();
  if (own->lanes == named) {
    waiting.erase(own);
    deliver(self);
    for_each_named_lane(self, [](Fiber& fiber) { make_ready(fiber); });
    ++machine.counters.collectives;
  }
  wait();
}

template <class T>
std::array<T, kWarpSize> gather(Place const& place, unsigned mask, T const& value) {
  static_assert(std::is_trivially_copyable_v<T> && std::is_default_constructible_v<T>);
  std::array<T, kWarpSize> values{};
  warp_collective(place, {mask, kAllLanes, sizeof(T), &value, values.data()});
  return values;
}

template <class T>
T shuffle(Place const& place, unsigned mask, T const& value, unsigned source) {
  static_assert(std::is_trivially_copyable_v<T>);
  T result = value;
  warp_collective(place, {mask, source, sizeof(T), &value, &result});
  return result;
}

inline unsigned ballot(Place const& place, unsigned mask, bool predicate) {
  std::array<bool, kWarpSize> const values = gather(place, mask, predicate);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) bits |= static_cast<unsigned>(values[lane]) << lane;
  return bits;
}

// Why no thread of the block can go on.
inline std::string deadlock() {
  Fiber const* waiting = nullptr;
  Fiber const* missing = nullptr;
  std::string exited;
  unsigned num_exited = 0;
  for (unsigned i = 0; i < machine.num_threads; ++i) {
    Fiber const& fiber = machine.fibers[i];
    if (fiber.state == State::kDone && num_exited++ < 4) exited += (exited.empty() ? "" : ", ") + std::to_string(i);
    if (fiber.state == State::kAtBarrier && waiting == nullptr) waiting = &fiber;
    if (fiber.state != State::kInWarp) continue;
    for_each_named_lane(fiber, [&](Fiber const& other) {
      // A lane in another collective may itself wait for the culprit, so it is named only if there is no other.
      bool const better = missing == nullptr || (missing->state == State::kInWarp && other.state != State::kInWarp);
      if (in_same_collective(fiber, other) || !better) return;
      waiting = &fiber;
      missing = &other;
    });
    if (missing != nullptr && missing->state != State::kInWarp) break;
  }
  if (missing != nullptr) {
    return describe(*waiting) + " in " + describe(waiting->place) + " waits for " + describe(*missing) + ", which " +
           (missing->state == State::kDone ? "has exited" : "is in " + describe(missing->place));
  }
  if (num_exited > 4) exited += " and " + std::to_string(num_exited - 4) + " more";
  return (num_exited == 1 ? "thread " : "threads ") + exited + " exited before " + describe(waiting->place) +
         ", where " + std::to_string(machine.num_at_barrier) + " wait";
}

inline void choose_queue() {
  std::size_t num_filled = 0;
  for (std::vector<Fiber*>& queue : machine.queues) {
    // Each of the filled queues is the one kept with the same probability.
    if (!queue.empty() && machine.random.below(++num_filled) == 0) machine.queue = &queue;
  }
}

// Until all threads are done or one has failed.
inline void run_block() {
  std::memset(machine.shared.get(), 0xFF, machine.shared_bytes);
  machine.num_at_barrier = 0;
  machine.vote = false;
  machine.queue = nullptr;
  for (std::vector<Fiber*>& queue : machine.queues) queue.clear();
  for (std::vector<Collective>& waiting : machine.collectives) waiting.clear();
  for (unsigned i = 0; i < machine.num_threads; ++i) {
    Fiber& fiber = machine.fibers[i];
    fiber.linear = i;
    fiber.thread = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    make_ready(fiber);
  }
  while (machine.failure == nullptr) {
    if (machine.queue == nullptr || machine.queue->empty()) {
      machine.queue = nullptr;
      choose_queue();
    }
    if (machine.queue == nullptr) {
      auto const end = machine.fibers.begin() + machine.num_threads;
      bool const done =
          std::all_of(machine.fibers.begin(), end, [](Fiber const& f) { return f.state == State::kDone; });
      if (!done) machine.failure = std::make_exception_ptr(fault(deadlock()));
      return;
    }
    std::swap((*machine.queue)[machine.random.below(machine.queue->size())], machine.queue->back());
    Fiber& next = *machine.queue->back();
    machine.queue->pop_back();
    resume(next);
  }
}

inline void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, Schedule const& schedule,
                     std::function<void()> body) {
  std::uint64_t const num_threads = std::uint64_t{block.x} * block.y * block.z;
  if (num_threads < 1 || num_threads > kMaxThreads || grid.x < 1 || grid.y < 1 || grid.z != 1) {
    throw std::runtime_error("launch needs 1 to 1024 threads in a block and a grid of at least 1 x 1 x 1, with z = 1");
  }
  while (machine.fibers.size() < num_threads) {
    Fiber& fiber = machine.fibers.emplace_back();
    prepare(fiber.context, fiber.stack, fiber_main);
  }
  machine.num_threads = static_cast<unsigned>(num_threads);
  machine.body = std::move(body);
  machine.shared.reset(new std::byte[shared_bytes]);
  machine.shared_bytes = shared_bytes;
  machine.schedule = schedule;
  machine.random = Random(schedule.seed);
  machine.queues.resize(schedule.seed % 2 == 0 ? 1 : (machine.num_threads + kWarpSize - 1) / kWarpSize);
  machine.counters = {};
  blockDim = block;
  gridDim = grid;

  std::vector<uint3> blocks;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, 0});
  }
  for (std::size_t left = blocks.size(); left != 0 && machine.failure == nullptr; --left) {
    std::swap(blocks[machine.random.below(left)], blocks[left - 1]);
    blockIdx = blocks[left - 1];
    run_block();
  }

  std::exception_ptr const failure = std::exchange(machine.failure, nullptr);
  if (failure != nullptr) {
    machine.cancelled = true;
    for (unsigned i = 0; i < machine.num_threads; ++i) {
      if (machine.fibers[i].state != State::kDone) resume(machine.fibers[i]);
    }
    machine.cancelled = false;
    machine.failure = nullptr;
  }
  machine.shared.reset();
  machine.body = nullptr;
  if (failure != nullptr) std::rethrow_exception(failure);
}

}  // namespace internal

// The dynamic shared memory of the running block, aligned to 16 bytes.
inline std::byte* shared_memory() { return internal::machine.shared.get(); }

// __syncthreads() and __syncwarp() for a wrapper that knows the line of its own caller: the site of the barrier.
inline void block_barrier(std::source_location where) { internal::block_barrier({"__syncthreads", where}, false); }

inline void warp_barrier(std::source_location where, unsigned mask = internal::kFullMask) {
  internal::Place const place{"__syncwarp", where};
  if (internal::is_deleted(place)) return;
  internal::Exchange exchange;
  exchange.mask = mask;
  internal::warp_collective(place, exchange);
}

// A collective of a full warp that gives every lane the values of all lanes: the ground for emulating mma.sync.
template <class T>
std::array<T, 32> gather_warp(T value, std::source_location where = std::source_location::current()) {
  internal::Place const place{"gather_warp", where};
  if (internal::existing_lanes(*internal::machine.current) != internal::kFullMask) {
    throw internal::fault(internal::describe(place) + " needs a full warp");
  }
  return internal::gather(place, internal::kFullMask, value);
}

// kernel<<<grid, block, shared_bytes>>>(arguments...); throws what goes wrong in it.
template <class Kernel, class... Arguments>
void launch(dim3 grid, dim3 block, std::size_t shared_bytes, Schedule const& schedule, Kernel kernel,
            Arguments... arguments) {
  internal::run_grid(grid, block, shared_bytes, schedule, [&] { kernel(arguments...); });
}

// The barriers (__syncthreads, __syncthreads_or, __syncwarp) that any thread met since clear_sites(), in source order.
inline std::vector<Site> sites() {
  std::vector<Site> sorted = internal::machine.sites;
  std::sort(sorted.begin(), sorted.end(), [](Site const& a, Site const& b) {
    int const files = std::strcmp(a.file, b.file);
    return files != 0 ? files < 0 : a.line < b.line;
  });
  return sorted;
}

inline void clear_sites() { internal::machine.sites.clear(); }

inline Counters const& counters() { return internal::machine.counters; }

}  // namespace hrel::emulator

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  hrel::emulator::block_barrier(where);
}

inline int __syncthreads_or(int predicate, std::source_location where = std::source_location::current()) {
  return hrel::emulator::internal::block_barrier({"__syncthreads_or", where}, predicate != 0);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, std::source_location where = std::source_location::current()) {
  hrel::emulator::warp_barrier(where, mask);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, std::source_location where = std::source_location::current()) {
  return hrel::emulator::internal::shuffle({"__shfl_sync", where}, mask, value, static_cast<unsigned>(lane) % 32);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, std::source_location where = std::source_location::current()) {
  unsigned const source = (hrel::emulator::internal::machine.current->lane() ^ static_cast<unsigned>(lane_mask)) % 32;
  return hrel::emulator::internal::shuffle({"__shfl_xor_sync", where}, mask, value, source);
}

// Past the last lane it gives the lane's own value, as the hardware does.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta,
                   std::source_location where = std::source_location::current()) {
  unsigned const lane = hrel::emulator::internal::machine.current->lane();
  unsigned const source = delta < 32 - lane ? lane + delta : lane;
  return hrel::emulator::internal::shuffle({"__shfl_down_sync", where}, mask, value, source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              std::source_location where = std::source_location::current()) {
  return hrel::emulator::internal::ballot({"__ballot_sync", where}, mask, predicate != 0);
}

inline int __any_sync(unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
  return hrel::emulator::internal::ballot({"__any_sync", where}, mask, predicate != 0) != 0;
}

inline int __all_sync(unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
  return hrel::emulator::internal::ballot({"__all_sync", where}, mask, predicate == 0) == 0;
}

// One thread runs at a time, and memory is what it wrote last.
inline void __threadfence() {}

inline unsigned atomicAdd(unsigned* address, unsigned value) { return std::exchange(*address, *address + value); }

template <class T>
T __ldg(T const* address) {
  return *address;
}

template <class T>
T __ldcg(T const* address) {
  return *address;
}

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float __fdividef(float numerator, float denominator) { return numerator / denominator; }

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// CUDA has these in the global namespace.
using std::max;
using std::min;

// Macros, because glibc declares functions of these names that it does not define or that are of C linkage.
#define __expf(x) std::exp(static_cast<float>(x))
#define rsqrtf(x) (1.0f / std::sqrt(static_cast<float>(x)))
