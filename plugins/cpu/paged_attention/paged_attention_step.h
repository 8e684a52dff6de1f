// The attributes of a PagedAttention node and the checked inputs of one call.
#pragma once

#include <cstdint>

#include "onnxruntime/custom_op.h"

namespace kvfold {

struct AttentionAttributes {
  int64_t num_heads, kv_num_heads, window, sinks;
  float scale, softcap, norm_epsilon;
  bool rotary;
};

// Reads the attributes; throws KernelFailure where one is out of range. `int8_cache` says which
// quant types the cache needs.
AttentionAttributes read_attributes(const Attributes& attributes, bool int8_cache);

// Views into the inputs of one call. Every index that the kernel will follow has been checked.
template <typename Cache>
struct AttentionStep {
  const float *query, *key, *value;          // rows of the strides below
  int64_t query_stride, key_stride, value_stride;
  Cache *key_cache, *value_cache;            // updated in place
  bool writable;                             // false: both stay as they are
  const int32_t *starts, *past, *table, *slots;  // [B + 1], [B], [B, table_width], [T]
  const float *cos, *sin;                    // [max_position, head_size / 2]; null: no RoPE
  const float *head_sink, *q_norm, *k_norm;  // null where absent
  const float *k_scale, *v_scale;            // [kv_num_heads, head_size]; null for float caches
  float* output;                             // [T, num_heads * head_size]
  int64_t tokens, sequences, table_width, num_pages, page_size, head_size;
};

template <typename Cache>
AttentionStep<Cache> read_step(const Context& context, const AttentionAttributes& attributes);

}  // namespace kvfold
