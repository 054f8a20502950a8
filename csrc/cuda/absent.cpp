// The CUDA backend of a build that has none: it says so.
// SPDX-License-Identifier: MIT
#include "cuda/launch.h"

namespace hrel::cuda {

char const* built_architectures() { return ""; }

}  // namespace hrel::cuda
