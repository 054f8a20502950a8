// What the bindings may ask of the CUDA backend. No CUDA header, so that it compiles everywhere. Every function only
// enqueues work on the stream it is given: it waits for nothing and allocates nothing. Operands and results lie on the
// device of the stream. Throws std::invalid_argument for operands it cannot take and std::runtime_error for an error of
// CUDA. SPDX-License-Identifier: MIT
#pragma once
#include <cstddef>
#include <string>

#include "numerics/problem.h"

namespace hrel::cuda {

// The architectures whose kernels this build holds, "80,90,..."; empty where it holds none.
char const* built_architectures();

struct Stream {
  int device;
  void* handle;  // cudaStream_t
};

// Memory of the device for the time of one call, aligned to 256 bytes.
struct Workspace {
  std::byte* data;
  Index bytes;
};

// The largest N that the kernels of this build take on this device; 0 where they do not run on it.
Index largest_num_samples(int device);

// The version of the CUDA runtime of this build, "13.0", where the driver is too old for it; else empty.
std::string runtime_beyond_driver(int device);

// Bytes of workspace that a call needs. They grow with F up to a fixed size only.
template <class Scalar, class Stored>
Index workspace_bytes(RelevanceProblem<Scalar, Stored> const& problem, int device);
template <class Stored>
Index workspace_bytes(AlignmentProblem<float, Stored> const& problem, int device);
template <class Scalar>
Index workspace_bytes(EntropyProblem<Scalar> const& problem, int device);

// S(A_f) and S(A_f, B) of every filter.
template <class Scalar, class Stored>
void relevance(RelevanceProblem<Scalar, Stored> const& problem, Workspace workspace, Stream stream);

// Mean distance and alignment of every width, of each filter or of the layer.
template <class Stored>
void kernel_alignment(AlignmentProblem<float, Stored> const& problem, Workspace workspace, Stream stream);

// S of every matrix divided by its trace.
template <class Scalar>
void matrix_entropy(EntropyProblem<Scalar> const& problem, Workspace workspace, Stream stream);

// Instances: Scalar float with Stored float, Half, BFloat16; but for alignments also Scalar double with Stored double.

}  // namespace hrel::cuda
