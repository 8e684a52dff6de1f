// The kernels that this library was built with: plugins/cuda/kernel_library.py, as a table in C++.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

namespace kvfold {

// One cubin, as its entry in kernels.json describes it. embed_kernels.py writes the table.
struct CompiledKernel {
  const char* variant;
  int architecture;
  const char* symbol;
  const unsigned char* cubin;
  unsigned num_warps;
  unsigned shared_bytes;
  const char* const* arguments;  // names, then a null pointer
  std::array<const char*, 3> grid;
  int tokens_per_tile;  // 0: the kernel has none
  int split_keys;       // 0: the kernel has none
};

// Any number of kernels in a row.
struct KernelLibrary {
  const CompiledKernel* kernels;
  size_t count;
  const char* sha256;  // identifies all kernels together

  const CompiledKernel* begin() const { return kernels; }
  const CompiledKernel* end() const { return kernels + count; }

  // Every architecture that some kernel was compiled for.
  std::vector<int> architectures() const;

  // The kernel for a GPU: its own architecture, else the nearest earlier minor of its major.
  // Throws KernelError where there is none; the message names what was compiled.
  const CompiledKernel& find(const std::string& variant, int architecture) const;
};

extern const KernelLibrary kEmbeddedKernels;

}  // namespace kvfold
