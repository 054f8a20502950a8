// CHECK and CHECK_NEAR: print file, line and values of every failure; a NaN fails. `return hrel::test::result();` ends
// main. SPDX-License-Identifier: MIT
#pragma once
#include <cmath>
#include <cstdio>

namespace hrel::test {

inline int failures = 0;
inline int checks = 0;

inline void check(bool holds, char const* text, char const* file, int line) {
  ++checks;
  if (holds) return;
  ++failures;
  std::printf("%s:%d: %s does not hold\n", file, line, text);
}

inline void check_near(double value, double expected, double tolerance, char const* text, char const* file, int line) {
  ++checks;
  if (std::fabs(value - expected) <= tolerance) return;
  ++failures;
  std::printf("%s:%d: %s is %.17g, expected %.17g within %.1e\n", file, line, text, value, expected, tolerance);
}

inline int result() {
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 && checks > 0 ? 0 : 1;
}

}  // namespace hrel::test

#define CHECK(condition) ::hrel::test::check((condition), #condition, __FILE__, __LINE__)
#define CHECK_NEAR(value, expected, tolerance) \
  ::hrel::test::check_near((value), (expected), (tolerance), #value, __FILE__, __LINE__)
