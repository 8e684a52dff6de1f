// The kernels of one engine: plugins/cuda/kernel_library.py. `open_kernels.h` reads them from a file.
#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

namespace kvfold::cuda {

// One cubin, as its entry in kernels.json describes it.
struct CompiledKernel {
  std::string variant;
  int architecture = 0;
  std::string symbol;
  unsigned num_warps = 0;
  unsigned shared_bytes = 0;
  std::vector<std::string> arguments;
  std::array<std::string, 3> grid;
  std::map<std::string, int> constants;
  std::string cubin;

  // A tile size that the launcher must know; 0 where the kernel has none of this name.
  int constant(const std::string& name) const;
};

struct KernelLibrary {
  std::string sha256;  // identifies all kernels together
  std::vector<CompiledKernel> kernels;

  // Every architecture that some kernel was compiled for.
  std::vector<int> architectures() const;

  // The kernel for a GPU: its own architecture, else the nearest earlier minor of its major.
  // Throws KernelError where there is none; the message names what was compiled.
  const CompiledKernel& find(const std::string& variant, int architecture) const;
};

}  // namespace kvfold::cuda
