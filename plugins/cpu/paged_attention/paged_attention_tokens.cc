#include "cpu/paged_attention/paged_attention_tokens.h"

#include <cmath>
#include <cstring>

namespace kvfold {
namespace {

// x * rsqrt(mean(x^2) + epsilon) * weight; the squares are summed in double, as in the reference.
void normalize(float* x, const float* weight, float epsilon, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(x[i]) * x[i];
  const float factor = 1.0f / std::sqrt(static_cast<float>(sum / static_cast<double>(size)) + epsilon);
  for (int64_t i = 0; i < size; ++i) x[i] = x[i] * factor * weight[i];
}

// Half-split RoPE: channel i is paired with i + size / 2.
void rotate(float* x, const float* cos, const float* sin, int64_t size) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[i], second = x[i + half];
    x[i] = first * cos[i] - second * sin[i];
    x[i + half] = second * cos[i] + first * sin[i];
  }
}

void store(const float* x, const float*, int64_t size, float* out) { std::memcpy(out, x, sizeof(float) * size); }

// clamp(round_half_even(x / scale), -128, 127). The clamp may come first, its bounds are integers;
// adding 1.5 * 2^23 then rounds half to even in a form that vectorises everywhere.
void store(const float* x, const float* scale, int64_t size, int8_t* out) {
  constexpr float kMagic = 12582912.0f;
  for (int64_t i = 0; i < size; ++i) {
    float value = x[i] / scale[i];
    value = value < -128.0f ? -128.0f : value;
    value = value > 127.0f ? 127.0f : value;
    out[i] = static_cast<int8_t>(static_cast<int32_t>((value + kMagic) - kMagic));
  }
}

// One head of one token, after QK-norm and RoPE.
template <typename Cache>
void load_head(const AttentionStep<Cache>& step, const AttentionAttributes& attributes, const float* source,
               const float* norm, int64_t position, float* x) {
  std::memcpy(x, source, sizeof(float) * step.head_size);
  if (norm != nullptr) normalize(x, norm, attributes.norm_epsilon, step.head_size);
  if (step.cos != nullptr) {
    const int64_t row = position * (step.head_size / 2);
    rotate(x, step.cos + row, step.sin + row, step.head_size);
  }
}

// Scale and k_scale go into the query, so that the product with a cached row is the logit.
template <typename Cache>
void ingest_query(const AttentionStep<Cache>& step, const AttentionAttributes& attributes, int64_t token,
                  int64_t position, const QueryRows& rows) {
  const int64_t group = attributes.num_heads / attributes.kv_num_heads, size = step.head_size;
  float x[kMaxHeadSize] = {};
  for (int64_t head = 0; head < attributes.num_heads; ++head) {
    const int64_t kv_head = head / group;
    load_head(step, attributes, step.query + token * step.query_stride + head * size, step.q_norm, position, x);
    for (int64_t i = 0; i < size; ++i) x[i] *= attributes.scale;
    if (step.k_scale != nullptr) {
      for (int64_t i = 0; i < size; ++i) x[i] *= step.k_scale[kv_head * size + i];
    }
    const int64_t row = (kv_head * step.tokens + token) * group + head % group;
    attention_kernels<Cache>().prepare_query(x, static_cast<int>(size), rows, row);
  }
}

template <typename Cache>
void ingest_key_value(const AttentionStep<Cache>& step, const AttentionAttributes& attributes, int64_t token,
                      int64_t position) {
  const int64_t size = step.head_size;
  float x[kMaxHeadSize];
  for (int64_t head = 0; head < attributes.kv_num_heads; ++head) {
    const int64_t out = (step.slots[token] * attributes.kv_num_heads + head) * size;
    load_head(step, attributes, step.key + token * step.key_stride + head * size, step.k_norm, position, x);
    store(x, step.k_scale + head * size, size, step.key_cache + out);
    store(step.value + token * step.value_stride + head * size, step.v_scale + head * size, size,
          step.value_cache + out);
  }
}

}  // namespace

template <typename Cache>
void ingest_tokens(const AttentionStep<Cache>& step, const AttentionAttributes& attributes,
                   const int64_t* positions, int64_t begin, int64_t end, const QueryRows& rows) {
  for (int64_t token = begin; token < end; ++token) {
    ingest_query(step, attributes, token, positions[token], rows);
    if (step.slots[token] >= 0) ingest_key_value(step, attributes, token, positions[token]);
  }
}

template void ingest_tokens<float>(const AttentionStep<float>&, const AttentionAttributes&, const int64_t*, int64_t,
                                   int64_t, const QueryRows&);
template void ingest_tokens<int8_t>(const AttentionStep<int8_t>&, const AttentionAttributes&, const int64_t*,
                                    int64_t, int64_t, const QueryRows&);

}  // namespace kvfold
