#include "cuda/cpp/launches.h"

#include <algorithm>

namespace kvfold::cuda {
namespace {

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

}  // namespace

std::vector<const char*> kernels_for(const Shapes& shapes) {
  if (shapes.decodes()) return {"append", "decode", "merge"};
  return {"append", "prefill"};
}

int64_t count_splits(const AttentionSpec& spec, int64_t table_width, int64_t split_keys) {
  const Attributes& attributes = spec.attributes;
  const int64_t every = divide_up(table_width * spec.page_size, split_keys);
  if (attributes.local_window_size < 0) return std::max<int64_t>(every, 1);
  const int64_t window = divide_up(attributes.local_window_size - 1, split_keys) + 1;
  return std::max<int64_t>(std::min(every, window + divide_up(attributes.sink_size, split_keys)), 1);
}

std::array<int64_t, 4> workspace_sizes(const AttentionSpec& spec, const Shapes& shapes, int64_t split_keys) {
  const int64_t heads = spec.attributes.num_heads;
  const int64_t splits = shapes.decodes() ? count_splits(spec, shapes.table_width, split_keys) : 0;
  const int64_t partials = 4 * shapes.sequences * heads * splits;
  std::array<int64_t, 4> sizes = {2 * shapes.tokens * heads * spec.head_size, partials, partials,
                                  partials * spec.head_size};
  for (int64_t& size : sizes) size = divide_up(size, kWorkspaceAlignment) * kWorkspaceAlignment;
  return sizes;
}

Numbers numbers(const AttentionSpec& spec, const Shapes& shapes, bool packed, const CompiledKernel& kernel,
                int64_t split_keys) {
  const Attributes& attributes = spec.attributes;
  const int64_t query_width = attributes.num_heads * spec.head_size;
  const int64_t kv_width = attributes.kv_num_heads * spec.head_size;
  const int64_t tile = std::max(kernel.constant("tokens_per_tile"), 1);
  const auto integer = [](int64_t value) { return Number(static_cast<int32_t>(value)); };
  return {
      {"tokens", integer(shapes.tokens)},
      {"sequences", integer(shapes.sequences)},
      {"table_width", integer(shapes.table_width)},
      {"num_heads", attributes.num_heads},
      {"kv_num_heads", attributes.kv_num_heads},
      {"query_stride", integer(packed ? query_width + 2 * kv_width : query_width)},
      {"kv_stride", integer(packed ? query_width + 2 * kv_width : kv_width)},
      {"window", attributes.local_window_size},
      {"sinks", attributes.sink_size},
      {"splits", integer(split_keys > 0 ? count_splits(spec, shapes.table_width, split_keys) : 0)},
      {"scale", attributes.scale},
      {"softcap", attributes.softcap},
      {"epsilon", attributes.qk_norm_epsilon},
      {"query_tiles", integer(divide_up(shapes.tokens, tile) + shapes.sequences)},
      {"one", 1},
  };
}

}  // namespace kvfold::cuda
