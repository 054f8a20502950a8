// What the bindings may ask of the CUDA backend. No CUDA header, so that it compiles everywhere.
// SPDX-License-Identifier: MIT
#pragma once

namespace hrel::cuda {

// The architectures whose kernels this build holds, "80;90;..."; empty where it holds none.
char const* built_architectures();

}  // namespace hrel::cuda
