// What is constant of one attention node, and which kernels it needs: plugins/cuda/attention_spec.py.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace kvfold::cuda {

constexpr int64_t kLeastHeadSize = 64, kMostHeadSize = 256, kHeadSizeStep = 8;
constexpr std::array<int64_t, 4> kPageSizes = {16, 32, 64, 128};
constexpr std::array<const char*, 2> kActivationDtypes = {"float16", "bfloat16"};
constexpr std::array<const char*, 4> kKernelNames = {"append", "prefill", "decode", "merge"};

// Of the op, as in plugins/paged_attention/schema.py.
struct Attributes {
  int32_t num_heads = 0;
  int32_t kv_num_heads = 0;
  float scale = 0;
  float softcap = 0;
  int32_t local_window_size = -1;
  int32_t sink_size = 0;
  int32_t do_rotary = 1;
  int32_t rotary_interleaved = 0;
  float qk_norm_epsilon = 1e-6f;
  std::string k_quant_type = "NONE";
  std::string v_quant_type = "NONE";
};

struct AttentionSpec {
  Attributes attributes;
  int64_t head_size = 0;
  int64_t page_size = 0;
  std::string activation_dtype;
  std::string cache_dtype;
  bool writes = true;
  bool qk_norm = false;
  bool head_sink = false;

  int64_t group_size() const { return attributes.num_heads / attributes.kv_num_heads; }
};

// Name of the variant of `kernel`, one of kKernelNames, that a node needs.
std::string variant_name(const std::string& kernel, const AttentionSpec& spec);

}  // namespace kvfold::cuda
