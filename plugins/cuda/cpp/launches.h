// The arithmetic of one call, from shapes alone: plugins/cuda/launches.py.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string_view>
#include <variant>
#include <vector>

#include "cuda/cpp/kernel_library.h"
#include "cuda/cpp/node/attention_spec.h"

namespace kvfold::cuda {

struct Shapes {
  int64_t tokens = 0;
  int64_t sequences = 0;
  int64_t table_width = 0;

  // As many tokens as sequences: the runtime never passes an empty sequence, so each has one.
  bool decodes() const { return tokens == sequences; }
};

// Scratch buffers in order, each aligned to kWorkspaceAlignment bytes.
constexpr std::array<const char*, 4> kWorkspace = {"rotated_query", "partial_max", "partial_sum", "partial_output"};
constexpr int64_t kWorkspaceAlignment = 256;

using Number = std::variant<int32_t, float>;
using Numbers = std::map<std::string_view, Number>;

std::vector<const char*> kernels_for(const Shapes& shapes);

// Most splits of `split_keys` keys, aligned to absolute positions, that one new token may see.
int64_t count_splits(const AttentionSpec& spec, int64_t table_width, int64_t split_keys);

// Bytes of each scratch buffer, in the order of kWorkspace.
std::array<int64_t, 4> workspace_sizes(const AttentionSpec& spec, const Shapes& shapes, int64_t split_keys);

// Every number that `kernel` may take, by name; decoding's splits have `split_keys` keys.
Numbers numbers(const AttentionSpec& spec, const Shapes& shapes, bool packed, const CompiledKernel& kernel,
                int64_t split_keys);

}  // namespace kvfold::cuda
