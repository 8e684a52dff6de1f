// One call of the op, resolved to what the driver is given: plugins/cuda/calls.py. Pure.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string_view>
#include <variant>
#include <vector>

#include "cuda/cpp/kernel_library.h"
#include "cuda/cpp/launches.h"
#include "cuda/cpp/node/attention_spec.h"

namespace kvfold::cuda {

// Device addresses by schema name.
using Buffers = std::map<std::string_view, uint64_t>;
// Of a kernel's parameter: a device address, or a number.
using Argument = std::variant<uint64_t, int32_t, float>;

struct Launch {
  const CompiledKernel* kernel;
  std::array<unsigned, 3> grid;
  std::vector<Argument> arguments;  // in the order of the kernel's parameters
};

// The launches of one call, in order.
// `buffers` holds every input and output that the node has, `workspace` at least workspace_of bytes.
// Throws KernelError where a kernel is missing, or asks for something that this version does not know.
std::vector<Launch> resolve(const KernelLibrary& library, int architecture, const AttentionSpec& spec,
                            const Shapes& shapes, const Buffers& buffers, uint64_t workspace);

// Scratch memory of one call on one architecture.
int64_t workspace_of(const KernelLibrary& library, int architecture, const AttentionSpec& spec, const Shapes& shapes);

// Scratch memory that suffices for every call up to `largest`, on each of the architectures.
int64_t workspace_bytes(const KernelLibrary& library, const std::vector<int>& architectures,
                        const AttentionSpec& spec, const Shapes& largest);

}  // namespace kvfold::cuda
