// Packs: several numbers side by side in one register, on GNU vector extensions alone. One pack holds the same element
// of several matrices (or of one matrix at several widths), so lanes never mix and sums need no horizontal step.
// SPDX-License-Identifier: MIT
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "numerics/config.h"

namespace hrel::cpu::HREL_LEVEL {

// 256 bits where the level has them.
#if defined(__AVX2__)
inline constexpr int kPackBytes = 32;
typedef float FloatPack __attribute__((vector_size(32)));
typedef double DoublePack __attribute__((vector_size(32)));
typedef std::int32_t FloatExponent __attribute__((vector_size(32)));
typedef std::int64_t DoubleExponent __attribute__((vector_size(32)));
#else
inline constexpr int kPackBytes = 16;
typedef float FloatPack __attribute__((vector_size(16)));
typedef double DoublePack __attribute__((vector_size(16)));
typedef std::int32_t FloatExponent __attribute__((vector_size(16)));
typedef std::int64_t DoubleExponent __attribute__((vector_size(16)));
#endif
#if defined(__AVX512VL__)
inline constexpr int kRegisters = 32;
#else
inline constexpr int kRegisters = 16;
#endif

template <class Pack>
struct Lanes;

template <>
struct Lanes<FloatPack> {
  using Scalar = float;
  using Exponent = FloatExponent;
  static constexpr int kCount = kPackBytes / sizeof(float);
  static constexpr int kMantissaBits = 23, kExponentBias = 127, kExpTerms = 7;
  static constexpr float kSmallestExponent = -126;
  static constexpr float kNegligibleSquare =
      1e-30F;  // below it a column counts as reduced; squares stay normal numbers
};

template <>
struct Lanes<DoublePack> {
  using Scalar = double;
  using Exponent = DoubleExponent;
  static constexpr int kCount = kPackBytes / sizeof(double);
  static constexpr int kMantissaBits = 52, kExponentBias = 1023, kExpTerms = 14;
  static constexpr double kSmallestExponent = -1022;
  static constexpr double kNegligibleSquare = 1e-290;
};

// The widest pack of the level: for loops over the samples of one filter, and for neighbours (below). Not for float64,
// whose filters are few.
#if defined(__AVX512F__)
typedef float WideFloatPack __attribute__((vector_size(64)));
typedef std::int32_t WideFloatExponent __attribute__((vector_size(64)));
template <>
struct Lanes<WideFloatPack> : Lanes<FloatPack> {
  using Exponent = WideFloatExponent;
  static constexpr int kCount = 16;
};
// Half of the lanes, for few filters: a group of them takes two thirds of the time.
typedef float HalfFloatPack __attribute__((vector_size(16)));
typedef std::int32_t HalfFloatExponent __attribute__((vector_size(16)));
template <>
struct Lanes<HalfFloatPack> : Lanes<FloatPack> {
  using Exponent = HalfFloatExponent;
  static constexpr int kCount = 4;
};
#else
typedef FloatPack WideFloatPack, HalfFloatPack;
#endif
template <class Pack>
using WidePack = std::conditional_t<std::is_same_v<typename Lanes<Pack>::Scalar, float>, WideFloatPack, Pack>;
template <class Pack>
using HalfPack = std::conditional_t<std::is_same_v<Pack, FloatPack>, HalfFloatPack, Pack>;

template <class Pack>
HREL_HD Pack splat(typename Lanes<Pack>::Scalar value) {
  return value - Pack{};
}

// Packs that lie side by side in memory go into one register where the level has wider ones than the pack: what is done
// to each of several elements of the same matrices takes a half or a fourth of the steps.
template <class Pack>
inline constexpr int kNeighbours = sizeof(WidePack<Pack>) / sizeof(Pack);

template <class Pack>
HREL_HD WidePack<Pack> load_neighbours(Pack const* packs) {
  WidePack<Pack> wide;
  __builtin_memcpy(&wide, packs, sizeof wide);
  return wide;
}

template <class Pack>
HREL_HD void store_neighbours(Pack* packs, WidePack<Pack> wide) {
  __builtin_memcpy(packs, &wide, sizeof wide);
}

template <class Pack>
HREL_HD WidePack<Pack> repeat(Pack pack) {
  static_assert(kNeighbours<Pack> <= 4);
  if constexpr (kNeighbours<Pack> == 1) {
    return pack;
  } else if constexpr (kNeighbours<Pack> == 2) {
    return __builtin_shufflevector(pack, pack, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
  } else {
    return __builtin_shufflevector(pack, pack, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
  }
}

// The same of a pack in memory. The compiler takes a shuffle, which a multiply-add would have to wait for.
template <class Pack>
HREL_HD WidePack<Pack> load_repeated(Pack const* pack) {
#if defined(__AVX512DQ__)
  if constexpr (kNeighbours<Pack> == 2) {
    WidePack<Pack> wide;
    asm("vbroadcastf32x8 %1, %0" : "=v"(wide) : "m"(*pack));
    return wide;
  } else if constexpr (kNeighbours<Pack> == 4) {
    WidePack<Pack> wide;
    asm("vbroadcastf32x4 %1, %0" : "=v"(wide) : "m"(*pack));
    return wide;
  }
#endif
  return repeat(*pack);
}

// The compiler would rather read a pack from memory for each use of it; where registers are many, that is a read too
// many.
template <class... Pack>
HREL_HD void keep_in_registers(Pack&... packs) {
#if defined(__AVX512F__)
  ([](Pack& pack) __attribute__((always_inline)) { asm("" : "+v"(pack)); }(packs), ...);
#else
  ((void)packs, ...);
#endif
}

// Numbers that are wanted one by one are read from memory in a step each; the compiler would shuffle each to the front.
template <class Pack>
HREL_HD void keep_in_memory(Pack& pack) {
  asm("" : "+m"(pack));
}

// Sums over neighbours take two of them at a time, also where there are four: they have one order, whatever the pack.
template <class Pack>
using PairPack = std::conditional_t<kNeighbours<Pack> == 4, FloatPack, WidePack<Pack>>;

// The first two neighbours, or the last two of four.
template <class Pack, bool kLast = false>
HREL_HD PairPack<Pack> pair_of(WidePack<Pack> wide) {
  static_assert(!kLast || kNeighbours<Pack> == 4);
  if constexpr (kLast) {
    return __builtin_shufflevector(wide, wide, 8, 9, 10, 11, 12, 13, 14, 15);
  } else if constexpr (kNeighbours<Pack> == 4) {
    return __builtin_shufflevector(wide, wide, 0, 1, 2, 3, 4, 5, 6, 7);
  } else {
    return wide;
  }
}

template <class Pack>
HREL_HD void add_pairs(WidePack<Pack> x, PairPack<Pack>& sum) {
  sum += pair_of<Pack>(x);
  if constexpr (kNeighbours<Pack> == 4) sum += pair_of<Pack, true>(x);
}

template <class Pack>
HREL_HD void add_pairs_of_products(WidePack<Pack> x, WidePack<Pack> y, PairPack<Pack>& sum) {
  sum += pair_of<Pack>(x) * pair_of<Pack>(y);
  if constexpr (kNeighbours<Pack> == 4) sum += pair_of<Pack, true>(x) * pair_of<Pack, true>(y);
}

template <class Pack>
HREL_HD Pack sum_of_pair(PairPack<Pack> pair) {
  if constexpr (kNeighbours<Pack> == 1) {
    return pair;
  } else if constexpr (kNeighbours<Pack> == 2) {
    return __builtin_shufflevector(pair, pair, 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(pair, pair, 8, 9, 10, 11, 12, 13, 14, 15);
  } else {
    return __builtin_shufflevector(pair, pair, 0, 1, 2, 3) + __builtin_shufflevector(pair, pair, 4, 5, 6, 7);
  }
}

template <class Pack>
HREL_HD Pack sum_of_neighbours(WidePack<Pack> wide) {
  Pack const first = sum_of_pair<Pack>(pair_of<Pack>(wide));
  if constexpr (kNeighbours<Pack> < 4) {
    return first;
  } else {
    return first + sum_of_pair<Pack>(pair_of<Pack, true>(wide));
  }
}

template <class Pack>
HREL_HD Pack square_root(Pack x) {
  Pack root;
  for (int lane = 0; lane < Lanes<Pack>::kCount; ++lane) root[lane] = std::sqrt(x[lane]);
  return root;
}

// kLanes values that lie side by side in memory.
template <class Pack, class Scalar>
HREL_HD Pack load(Scalar const* values) {
  using Value = typename Lanes<Pack>::Scalar;
  Pack pack;
  if constexpr (std::is_same_v<Scalar, Value>) {
    __builtin_memcpy(&pack, values, sizeof(Pack));
  } else {
    for (int lane = 0; lane < Lanes<Pack>::kCount; ++lane) pack[lane] = static_cast<Value>(values[lane]);
  }
  return pack;
}

// Of every kSize lanes of two packs the first halves, in turns, or the second ones.
template <int kSize, bool kSecond, class Pack, int... kLane>
HREL_HD Pack in_turns(Pack a, Pack b, std::integer_sequence<int, kLane...>) {
  constexpr int kLanes = sizeof...(kLane), kFrom = kSecond ? kSize / 2 : 0;
  return __builtin_shufflevector(a, b, (kLane / kSize * kSize + kFrom + kLane % kSize / 2 + kLane % 2 * kLanes)...);
}

// Transposes kSize packs, of each kSize lanes that lie side by side on their own; kSize, a power of two, divides the
// number of lanes.
template <int kSize, class Pack>
HREL_HD void transpose(Pack (&rows)[kSize]) {
  using Lane = std::make_integer_sequence<int, sizeof(Pack) / sizeof(rows[0][0])>;
  // Row r goes in turns with row r + kSize / 2: after log2(kSize) such steps rows are columns.
  for (int step = 1; step < kSize; step *= 2) {
    Pack next[kSize];
#pragma GCC unroll 8
    for (int r = 0; r < kSize / 2; ++r) {
      next[2 * r] = in_turns<kSize, false>(rows[r], rows[r + kSize / 2], Lane());
      next[2 * r + 1] = in_turns<kSize, true>(rows[r], rows[r + kSize / 2], Lane());
    }
#pragma GCC unroll 16
    for (int r = 0; r < kSize; ++r) rows[r] = next[r];
  }
}

// A pack in units of 16 bytes, which go from memory to their places in a register without a shuffle.
template <class Pack>
inline constexpr int kUnitLanes = 16 / sizeof(typename Lanes<Pack>::Scalar);

// Unit u of the result is what lies at units[u * step] + offset. The compiler would take shuffles.
template <class Pack, class Value = typename Lanes<Pack>::Scalar>
HREL_HD Pack load_units(Value const* const* units, int step, Index offset) {
  typedef Value Unit __attribute__((vector_size(16), aligned(sizeof(Value))));
  auto const unit = [&](int u) __attribute__((always_inline)) -> Unit const& {
    return *reinterpret_cast<Unit const*>(units[u * step] + offset);
  };
  if constexpr (sizeof(Pack) == 16) {
    return unit(0);
  } else {
    Pack pack;
    asm("vmovups %1, %x0" : "=v"(pack) : "m"(unit(0)));
    if constexpr (sizeof(Pack) == 32) {
      asm("vinsertf128 $1, %1, %0, %0" : "+x"(pack) : "m"(unit(1)));
    } else {
      asm("vinsertf32x4 $1, %1, %0, %0" : "+v"(pack) : "m"(unit(1)));
      asm("vinsertf32x4 $2, %1, %0, %0" : "+v"(pack) : "m"(unit(2)));
      asm("vinsertf32x4 $3, %1, %0, %0" : "+v"(pack) : "m"(unit(3)));
    }
    return pack;
  }
}

// Calls take(p, values) for kUnits units of positions, p on, of rows that lie contiguous.
template <int kUnits, class Pack, class Value, class Take>
HREL_HD void interleave_units(Value const* const* rows, int p, Take const& take) {
  constexpr int kUnit = kUnitLanes<Pack>;
  Pack block[kUnits][kUnit];
  // All of a row first: rows a power of two apart in memory would drive each other from the cache.
#pragma GCC unroll 4
  for (int r = 0; r < kUnit; ++r) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) block[u][r] = load_units<Pack>(rows + r, kUnit, p + u * kUnit);
  }
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; ++u) {
    transpose(block[u]);
#pragma GCC unroll 4
    for (int q = 0; q < kUnit; ++q) take(p + u * kUnit + q, block[u][q]);
  }
}

// Calls take(p, values) for each p of 0 .. count - 1, values[lane] = rows[lane][p * stride], one row a lane.
template <class Pack, class Scalar, class Take>
HREL_HD void interleave(Scalar const* const* rows, Index stride, int count, Take const& take) {
  using Value = typename Lanes<Pack>::Scalar;
  constexpr int kLanes = Lanes<Pack>::kCount, kUnit = kUnitLanes<Pack>;
  int p = 0;
  if constexpr (std::is_same_v<Scalar, Value>) {
    for (; stride == 1 && p + kLanes <= count; p += kLanes) interleave_units<kLanes / kUnit, Pack>(rows, p, take);
    for (; stride == 1 && p + kUnit <= count; p += kUnit) interleave_units<1, Pack>(rows, p, take);
  }
  for (; p < count; ++p) {
    Pack values;
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) values[lane] = static_cast<Value>(rows[lane][p * stride]);
    take(p, values);
  }
}

inline constexpr double kLog2OfE = 1.44269504088896340736;

// 1 - 2^x for x <= 0 to a small relative error also for x near 0: with x = k + r, |r| <= 1/2, it is
// -(2^k (2^r - 1) + (2^k - 1)). 2^r - 1 by its Taylor series, whose rest is below half a unit of the last place.
// NaN stays NaN; minus infinity gives 1.
template <class Pack>
HREL_HD Pack one_minus_exp2(Pack x) {
  using L = Lanes<Pack>;
  using Scalar = typename L::Scalar;
  // Added to a number, it leaves no bits below 1; the lowest ones are then the nearest integer as an exponent has it.
  constexpr Scalar kRounder = Scalar(1.5) * static_cast<Scalar>(std::int64_t{1} << L::kMantissaBits) + L::kExponentBias;
  Pack const smallest = splat<Pack>(L::kSmallestExponent);
  x = x < smallest ? smallest : x;
  Pack const rounded = x + kRounder;
  Pack const r = x - (rounded - kRounder);
  constexpr auto kTaylor = [] {
    struct {
      Scalar value[L::kExpTerms];
    } table{};
    double term = 1;
    for (int k = 0; k < L::kExpTerms; ++k)
      table.value[k] = static_cast<Scalar>(term *= 0.693147180559945309417 / (k + 1));
    return table;
  }();
  Pack series = splat<Pack>(kTaylor.value[L::kExpTerms - 1]);
#pragma GCC unroll 14
  for (int k = L::kExpTerms - 2; k >= 0; --k) series = series * r + kTaylor.value[k];
  Pack const power = __builtin_bit_cast(Pack, __builtin_bit_cast(typename L::Exponent, rounded) << L::kMantissaBits);
  return -(series * r * power + (power - 1));
}

}  // namespace hrel::cpu::HREL_LEVEL
