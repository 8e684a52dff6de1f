#include "cpu/paged_attention/paged_attention_step.h"

#include <cstring>
#include <type_traits>

#include "cpu/paged_attention/paged_attention_split.h"

namespace kvfold {
namespace {

// Positions in schema.py's INPUTS.
enum Input {
  kQuery, kKey, kValue, kKeyCache, kValueCache, kStarts, kPast, kTable, kCos, kSin, kSlots, kHeadSink, kQNorm,
  kKNorm, kKScale, kVScale
};

std::string text(const char* part) { return part; }
std::string text(const std::string& part) { return part; }
std::string text(const Shape& part) { return to_string(part); }
std::string text(int64_t part) { return std::to_string(part); }

// The parts become a message where one is thrown alone: this is called for every layer of every step.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) throw KernelFailure((... + text(parts)));
}

template <typename T>
void require_shape(const Tensor<T>& tensor, const char* name, const Shape& expected) {
  require(tensor.shape == expected, name, " has shape ", tensor.shape, ", expected ", expected);
}

// An optional input: its data if present, after checking its shape.
const float* optional(const Context& context, Input index, const char* name, const Shape& expected) {
  const auto tensor = context.input<float>(index, name);
  if (tensor.present()) require_shape(tensor, name, expected);
  return tensor.data;
}

template <typename Cache>
void read_tokens(const Context& context, const AttentionAttributes& a, AttentionStep<Cache>& step) {
  const auto query = context.input<float>(kQuery, "query");
  const auto key = context.input<float>(kKey, "key");
  const auto value = context.input<float>(kValue, "value");
  require(query.shape.size() == 2, "query has shape ", query.shape, ", expected [T, width]");
  require(key.present() == value.present(), "key and value must both be present or both be absent (packed)");
  step.tokens = query.shape[0];
  const int64_t heads = a.num_heads * step.head_size, kv = a.kv_num_heads * step.head_size;
  if (key.present()) {
    require_shape(query, "query", {step.tokens, heads});
    require_shape(key, "key", {step.tokens, kv});
    require_shape(value, "value", {step.tokens, kv});
    step.query_stride = heads;
    step.key_stride = step.value_stride = kv;
    step.key = key.data;
    step.value = value.data;
  } else {
    require_shape(query, "query (packed, as key is absent)", {step.tokens, heads + 2 * kv});
    step.query_stride = step.key_stride = step.value_stride = heads + 2 * kv;
    step.key = query.data + heads;
    step.value = query.data + heads + kv;
  }
  step.query = query.data;
}

// The caches are read and written where the output lives; ONNX Runtime aliases it with the input.
template <typename Cache>
Cache* cache_buffer(const Context& context, size_t output, const Tensor<const Cache>& input, bool* writable) {
  Cache* out = context.output<Cache>(output, input.shape);
  if (out == nullptr) {
    *writable = false;  // a consumer: every slot must be -1
    return const_cast<Cache*>(input.data);
  }
  if (out != input.data) std::memcpy(out, input.data, sizeof(Cache) * input.size());
  return out;
}

template <typename Cache>
void read_caches(const Context& context, const AttentionAttributes& a, AttentionStep<Cache>& step) {
  const auto keys = context.input<Cache>(kKeyCache, "key_cache");
  const auto values = context.input<Cache>(kValueCache, "value_cache");
  require(keys.shape.size() == 4 && keys.shape[2] == a.kv_num_heads, "key_cache has shape ", keys.shape,
          ", expected [num_pages, page_size, ", a.kv_num_heads, ", head_size]");
  require_shape(values, "value_cache", keys.shape);
  step.num_pages = keys.shape[0];
  step.page_size = keys.shape[1];
  step.head_size = keys.shape[3];
  require(step.page_size > 0, "key_cache has page_size 0");
  require(step.head_size >= 2 && step.head_size <= kMaxHeadSize && step.head_size % 2 == 0, "head_size is ",
          step.head_size, "; supported are even sizes up to ", kMaxHeadSize);
  step.writable = true;
  step.key_cache = cache_buffer<Cache>(context, 1, keys, &step.writable);
  step.value_cache = cache_buffer<Cache>(context, 2, values, &step.writable);

  const Shape scale_shape = {a.kv_num_heads, 1, step.head_size};
  step.k_scale = optional(context, kKScale, "k_scale", scale_shape);
  step.v_scale = optional(context, kVScale, "v_scale", scale_shape);
  if (std::is_same<Cache, int8_t>::value) {
    require(step.k_scale != nullptr && step.v_scale != nullptr, "an int8 cache needs k_scale and v_scale");
  } else {
    require(step.k_scale == nullptr && step.v_scale == nullptr, "k_scale and v_scale need an int8 cache");
  }
}

template <typename Cache>
void read_weights(const Context& context, const AttentionAttributes& a, AttentionStep<Cache>& step) {
  step.head_sink = optional(context, kHeadSink, "head_sink", {a.num_heads});
  step.q_norm = optional(context, kQNorm, "q_norm_weight", {step.head_size});
  step.k_norm = optional(context, kKNorm, "k_norm_weight", {step.head_size});
  require((step.q_norm == nullptr) == (step.k_norm == nullptr),
          "q_norm_weight and k_norm_weight must both be present or both be absent");
}

// Rows of the rotary tables; the number of positions they cover.
template <typename Cache>
int64_t read_rotary(const Context& context, const AttentionAttributes& a, AttentionStep<Cache>& step) {
  step.cos = step.sin = nullptr;
  if (!a.rotary) return INT64_MAX;
  const auto cos = context.input<float>(kCos, "cos_cache");
  const auto sin = context.input<float>(kSin, "sin_cache");
  require(cos.present() && sin.present(), "do_rotary is 1, but cos_cache or sin_cache is absent");
  require(cos.shape.size() == 2, "cos_cache has shape ", cos.shape, ", expected 2 dimensions");
  require_shape(cos, "cos_cache", {cos.shape[0], step.head_size / 2});
  require_shape(sin, "sin_cache", cos.shape);
  step.cos = cos.data;
  step.sin = sin.data;
  return cos.shape[0];
}

template <typename Cache>
void check_sequence(const AttentionStep<Cache>& step, int64_t sequence, int64_t max_position) {
  const int64_t past = step.past[sequence], start = step.starts[sequence], end = step.starts[sequence + 1];
  require(start <= end && end <= step.tokens, "sequence ", sequence,
          ": cumulative_sequence_length falls, or exceeds T");
  require(past >= 0, "sequence ", sequence, ": past_seqlens is ", past);
  if (start == end) return;
  const int64_t total = past + end - start, pages = (total + step.page_size - 1) / step.page_size;
  require(total <= max_position, "sequence ", sequence, " has ", total, " tokens, cos_cache covers ",
          max_position, " positions");
  require(pages <= step.table_width, "sequence ", sequence, " needs ", pages, " pages, block_table has ",
          step.table_width, " columns");
  for (int64_t page = 0; page < pages; ++page) {
    const int64_t id = step.table[sequence * step.table_width + page];
    require(id >= -1 && id < step.num_pages, "sequence ", sequence, ": block_table holds page ", id,
            ", the cache has ", step.num_pages, " pages");
  }
}

template <typename Cache>
void read_paging(const Context& context, int64_t max_position, AttentionStep<Cache>& step) {
  const auto past = context.input<int32_t>(kPast, "past_seqlens");
  require(past.shape.size() == 1, "past_seqlens has shape ", past.shape, ", expected [B]");
  step.sequences = past.shape[0];
  const auto starts = context.input<int32_t>(kStarts, "cumulative_sequence_length");
  const auto table = context.input<int32_t>(kTable, "block_table");
  const auto slots = context.input<int32_t>(kSlots, "slot_mapping");
  require_shape(starts, "cumulative_sequence_length", {step.sequences + 1});
  require(table.shape.size() == 2, "block_table has shape ", table.shape, ", expected [B, M]");
  require_shape(table, "block_table", {step.sequences, table.shape[1]});
  require_shape(slots, "slot_mapping", {step.tokens});
  step.past = past.data;
  step.starts = starts.data;
  step.table = table.data;
  step.table_width = table.shape[1];
  step.slots = slots.data;
  require(step.starts[0] == 0 && step.starts[step.sequences] == step.tokens,
          "cumulative_sequence_length must run from 0 to T = ", step.tokens);
  for (int64_t i = 0; i < step.sequences; ++i) check_sequence(step, i, max_position);
  for (int64_t i = 0; i < step.tokens; ++i) {
    require(step.slots[i] >= -1 && step.slots[i] < step.num_pages * step.page_size, "slot_mapping[", i, "] is ",
            step.slots[i], ", the cache has ", step.num_pages * step.page_size, " slots");
    require(step.slots[i] < 0 || step.writable, "slot_mapping[", i, "] is ", step.slots[i],
            ", but key_cache_out or value_cache_out is absent; name them, or use -1");
  }
}

}  // namespace

AttentionAttributes read_attributes(const Attributes& attributes, bool int8_cache) {
  AttentionAttributes a;
  a.num_heads = attributes.integer("num_heads");
  a.kv_num_heads = attributes.integer("kv_num_heads");
  a.scale = attributes.real("scale");
  a.softcap = attributes.real("softcap", 0.0f);
  a.window = attributes.integer("local_window_size", -1);
  a.sinks = attributes.integer("sink_size", 0);
  a.rotary = attributes.integer("do_rotary", 1) != 0;
  a.norm_epsilon = attributes.real("qk_norm_epsilon", 1e-6f);
  require(a.kv_num_heads > 0 && a.num_heads > 0 && a.num_heads % a.kv_num_heads == 0, "num_heads is ", a.num_heads,
          ", not a multiple of kv_num_heads ", a.kv_num_heads);
  require(a.window == -1 || a.window > 0, "local_window_size is ", a.window,
          "; use -1 (off) or at least 1 (the token itself)");
  require(a.sinks >= 0, "sink_size is ", a.sinks, "; use 0 or more tokens");
  require(a.softcap >= 0.0f, "softcap is negative; use 0 (off) or a positive bound");
  require(attributes.integer("rotary_interleaved", 0) == 0,
          "rotary_interleaved is 1; the CPU kernel reads the half-split layout (0) only");
  const std::string expected = int8_cache ? "PER_CHANNEL" : "NONE";
  for (const char* name : {"k_quant_type", "v_quant_type"}) {
    const std::string type = attributes.text(name, "NONE");
    require(type == expected, name, " is ", type, ", this cache type needs ", expected);
  }
  return a;
}

template <typename Cache>
AttentionStep<Cache> read_step(const Context& context, const AttentionAttributes& attributes) {
  AttentionStep<Cache> step = {};
  read_caches(context, attributes, step);
  read_tokens(context, attributes, step);
  read_weights(context, attributes, step);
  read_paging(context, read_rotary(context, attributes, step), step);
  step.output = context.output<float>(0, {step.tokens, attributes.num_heads * step.head_size});
  return step;
}

template AttentionStep<float> read_step<float>(const Context&, const AttentionAttributes&);
template AttentionStep<int8_t> read_step<int8_t>(const Context&, const AttentionAttributes&);

}  // namespace kvfold
