// The kernels that this process has: read from files that plugins/cuda/kernel_library.py writes, found by sha256.
#pragma once

#include <string>

#include "cuda/cpp/kernel_library.h"

namespace kvfold::cuda {

// A file of kernels. Throws KernelError where it cannot be opened or is no whole file of kernels.
KernelLibrary read_kernels(const std::string& file);

// Reads a file and keeps its kernels to the end of the process; those of the same sha256 stay what they were.
// Python calls it before a graph or a plan is loaded; elsewhere the environment's KVFOLD_KERNELS names the file.
const KernelLibrary& open_kernels(const std::string& file);

// The kernels that a node was built with. Throws KernelError where they are not open.
const KernelLibrary& kernels_of(const std::string& sha256);

// The kernels opened last, for a node that is being built. Throws KernelError where none are open.
const KernelLibrary& latest_kernels();

}  // namespace kvfold::cuda
