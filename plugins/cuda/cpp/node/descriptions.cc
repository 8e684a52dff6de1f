#include "cuda/cpp/node/descriptions.h"

#include <algorithm>
#include <map>
#include <set>

#include "cuda/cpp/text.h"

namespace kvfold::cuda {
namespace {

const std::set<std::string> kActivations = {"query", "key", "value", "output"};
const std::set<std::string> kCaches = {"key_cache", "value_cache", "key_cache_out", "value_cache_out"};
const std::set<std::string> kInt32 = {"cumulative_sequence_length", "past_seqlens", "block_table", "slot_mapping"};

std::string describe(const Dims& dims) {
  std::vector<std::string> sizes;
  for (const int64_t size : dims) sizes.push_back(size == kUnknown ? "?" : std::to_string(size));
  return "[" + join(sizes) + "]";
}

bool fits(const Dims& dims, const Dims& expected) {
  if (dims.size() != expected.size()) return false;
  for (size_t axis = 0; axis < dims.size(); ++axis) {
    const bool known = dims[axis] != kUnknown && expected[axis] != kUnknown;
    if (known && dims[axis] != expected[axis]) return false;
  }
  return true;
}

// The schema's shapes; a length is that of the input which defines it.
std::map<std::string, Dims> expected_shapes(const Node& node, const std::vector<Dims>& shapes, int64_t page_size,
                                            int64_t head_size) {
  const auto length = [&](const char* name) {
    const int32_t index = node.index_of(name);
    return index < 0 || shapes[index].empty() ? kUnknown : shapes[index][0];
  };
  const int64_t heads = node.attributes.num_heads, kv_heads = node.attributes.kv_num_heads;
  const int64_t tokens = length("query"), sequences = length("past_seqlens");
  const Dims cache = {length("key_cache"), page_size, kv_heads, head_size};
  const Dims rope = {length("cos_cache"), head_size / 2};
  const int64_t query_heads = node.packed() ? heads + 2 * kv_heads : heads;
  return {
      {"query", {tokens, query_heads * head_size}},
      {"key", {tokens, kv_heads * head_size}},
      {"value", {tokens, kv_heads * head_size}},
      {"key_cache", cache},
      {"value_cache", cache},
      {"cumulative_sequence_length", {sequences == kUnknown ? kUnknown : sequences + 1}},
      {"past_seqlens", {sequences}},
      {"block_table", {sequences, kUnknown}},
      {"cos_cache", rope},
      {"sin_cache", rope},
      {"slot_mapping", {tokens}},
      {"head_sink", {heads}},
      {"q_norm_weight", {head_size}},
      {"k_norm_weight", {head_size}},
      {"k_scale", {kv_heads, 1, head_size}},
      {"v_scale", {kv_heads, 1, head_size}},
  };
}

template <typename Sizes>
bool contains(const Sizes& sizes, int64_t size) {
  return std::find(sizes.begin(), sizes.end(), size) != sizes.end();
}

}  // namespace

std::string expected_dtype(const Node& node, const std::string& name, const std::string& activation) {
  if (kActivations.count(name) > 0) return activation;
  if (kCaches.count(name) > 0) return node.attributes.k_quant_type == "PER_CHANNEL" ? "int8" : activation;
  return kInt32.count(name) > 0 ? "int32" : "float32";
}

void check_dtypes(const Node& node, const std::vector<std::string>& dtypes) {
  if (dtypes.size() != node.inputs.size()) {
    node.fail(text("has ", dtypes.size(), " inputs, and its attribute inputs lists ", join(node.inputs)));
  }
  const std::string& activation = dtypes[node.index_of("query")];
  if (std::find(kActivationDtypes.begin(), kActivationDtypes.end(), activation) == kActivationDtypes.end()) {
    node.fail(text("query is ", activation, "; the kernels compute ", kActivationDtypes[0], " and ",
                   kActivationDtypes[1]));
  }
  for (size_t index = 0; index < dtypes.size(); ++index) {
    const std::string& name = node.inputs[index];
    const std::string expected = expected_dtype(node, name, activation);
    if (dtypes[index] == expected) continue;
    const std::string because =
        kCaches.count(name) > 0 ? text(" (k_quant_type is ", node.attributes.k_quant_type, ")") : "";
    node.fail(text(name, " is ", dtypes[index], ", and must be ", expected, because));
  }
}

std::pair<int64_t, int64_t> check_shapes(const Node& node, const std::vector<Dims>& shapes) {
  const Dims& cache = shapes[node.index_of("key_cache")];
  if (cache.size() != 4 || std::find(cache.begin() + 1, cache.end(), kUnknown) != cache.end()) {
    node.fail(text("key_cache has shape ", describe(cache),
                   "; it must be [pages, page_size, kv_num_heads, head_size], with everything but the pages "
                   "constant"));
  }
  const int64_t page_size = cache[1], head_size = cache[3];
  if (head_size < kLeastHeadSize || head_size > kMostHeadSize || head_size % kHeadSizeStep != 0) {
    node.fail(text("head size ", head_size, " has no kernel; there are ", kLeastHeadSize, " to ", kMostHeadSize,
                   " in steps of ", kHeadSizeStep));
  }
  if (!contains(kPageSizes, page_size)) {
    const char* problem = (page_size & (page_size - 1)) != 0 ? "is not a power of two" : "has no kernel";
    node.fail(text("page size ", page_size, " ", problem, "; there are ", join(kPageSizes)));
  }
  const std::map<std::string, Dims> expected = expected_shapes(node, shapes, page_size, head_size);
  for (size_t index = 0; index < shapes.size(); ++index) {
    const std::string& name = node.inputs[index];
    if (!fits(shapes[index], expected.at(name))) {
      node.fail(text(name, " has shape ", describe(shapes[index]), ", and must have ", describe(expected.at(name))));
    }
  }
  return {page_size, head_size};
}

AttentionSpec spec_of(const Node& node, const std::vector<Tensor>& tensors) {
  std::vector<std::string> dtypes;
  std::vector<Dims> shapes;
  for (const Tensor& tensor : tensors) {
    dtypes.push_back(tensor.dtype);
    shapes.push_back(tensor.dims);
  }
  check_dtypes(node, dtypes);
  const auto [page_size, head_size] = check_shapes(node, shapes);
  return {node.attributes, head_size, page_size, dtypes[node.index_of("query")], dtypes[node.index_of("key_cache")],
          node.writes(), node.has("q_norm_weight"), node.has("head_sink")};
}

Shapes shapes_of(const Node& node, const std::vector<Tensor>& tensors) {
  const auto dims = [&](const char* name) -> const Dims& { return tensors[node.index_of(name)].dims; };
  return {dims("query")[0], dims("past_seqlens")[0], dims("block_table")[1]};
}

}  // namespace kvfold::cuda
