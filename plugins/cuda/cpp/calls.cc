#include "cuda/cpp/calls.h"

#include <algorithm>
#include <numeric>

#include "cuda/cpp/node/attributes.h"
#include "cuda/cpp/text.h"

namespace kvfold::cuda {
namespace {

constexpr int64_t kActivationBytes = 2;  // float16 and bfloat16
constexpr const char* kAgain = "build the engine again with this kvfold";

int64_t split_keys_of(const KernelLibrary& library, const AttentionSpec& spec, int architecture) {
  const CompiledKernel& kernel = library.find(variant_name("decode", spec), architecture);
  const int split_keys = kernel.constant("split_keys");
  if (split_keys == 0) {
    throw KernelError(text("kernel ", kernel.variant, " does not say its split_keys; ", kAgain));
  }
  return split_keys;
}

// Every buffer that a kernel may take: 0 where the node has no such input.
Buffers all_buffers(const AttentionSpec& spec, const Shapes& shapes, const Buffers& given, bool packed,
                    uint64_t workspace, int64_t split_keys) {
  Buffers all = given;
  if (packed) {  // [T, (num_heads + 2 * kv_num_heads) * head_size]
    const int64_t head_bytes = spec.head_size * kActivationBytes;
    all["key"] = all.at("query") + static_cast<uint64_t>(spec.attributes.num_heads * head_bytes);
    all["value"] = all["key"] + static_cast<uint64_t>(spec.attributes.kv_num_heads * head_bytes);
  }
  for (const std::string& name : schema_inputs()) all.emplace(name, 0);
  const std::array<int64_t, 4> sizes = workspace_sizes(spec, shapes, split_keys);
  for (size_t index = 0; index < kWorkspace.size(); ++index) {
    all[kWorkspace[index]] = workspace;
    workspace += static_cast<uint64_t>(sizes[index]);
  }
  return all;
}

unsigned grid_size(const CompiledKernel& kernel, const std::string& name, const Numbers& values) {
  const auto found = values.find(name);
  const int32_t* size = found == values.end() ? nullptr : std::get_if<int32_t>(&found->second);
  if (size == nullptr) {
    throw KernelError(text("kernel ", kernel.variant, " has a grid over '", name, "', which is unknown; ", kAgain));
  }
  return static_cast<unsigned>(*size);
}

Argument argument(const CompiledKernel& kernel, const std::string& name, const Buffers& pointers, const Numbers& values) {
  if (const auto pointer = pointers.find(name); pointer != pointers.end()) return pointer->second;
  const auto found = values.find(name);
  if (found == values.end()) {
    throw KernelError(text("kernel ", kernel.variant, " takes '", name, "', which is unknown; ", kAgain));
  }
  return std::visit([](auto number) -> Argument { return number; }, found->second);
}

}  // namespace

std::vector<Launch> resolve(const KernelLibrary& library, int architecture, const AttentionSpec& spec,
                            const Shapes& shapes, const Buffers& buffers, uint64_t workspace) {
  const bool packed = spec.writes && buffers.count("key") == 0;
  // Merging has no split size of its own: its splits are those that decoding wrote.
  const int64_t split_keys = shapes.decodes() ? split_keys_of(library, spec, architecture) : 0;
  const Buffers pointers = all_buffers(spec, shapes, buffers, packed, workspace, split_keys);
  std::vector<Launch> launches;
  for (const char* name : kernels_for(shapes)) {
    const CompiledKernel& kernel = library.find(variant_name(name, spec), architecture);
    const Numbers values = numbers(spec, shapes, packed, kernel, split_keys);
    Launch launch = {&kernel, {}, {}};
    for (size_t axis = 0; axis < 3; ++axis) launch.grid[axis] = grid_size(kernel, kernel.grid[axis], values);
    for (const std::string& each : kernel.arguments) {
      launch.arguments.push_back(argument(kernel, each, pointers, values));
    }
    launches.push_back(std::move(launch));
  }
  return launches;
}

int64_t workspace_of(const KernelLibrary& library, int architecture, const AttentionSpec& spec, const Shapes& shapes) {
  const std::array<int64_t, 4> sizes =
      workspace_sizes(spec, shapes, shapes.decodes() ? split_keys_of(library, spec, architecture) : 0);
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
}

int64_t workspace_bytes(const KernelLibrary& library, const std::vector<int>& architectures,
                        const AttentionSpec& spec, const Shapes& largest) {
  // A profile whose most tokens and sequences differ may still see calls that decode.
  const int64_t decoded = std::min(largest.tokens, largest.sequences);
  int64_t most = 0;
  for (const int architecture : architectures) {
    for (const Shapes& shapes : {largest, Shapes{decoded, decoded, largest.table_width}}) {
      most = std::max(most, workspace_of(library, architecture, spec, shapes));
    }
  }
  return most;
}

}  // namespace kvfold::cuda
