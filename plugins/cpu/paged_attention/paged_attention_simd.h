// The attention of one split, written once over a small vector layer. Each instruction set's file
// includes it inside its own anonymous namespace, after defining
//   Simd      kLanes floats and their arithmetic
//   FloatDot, IntegerDot
//             how `left` rows of scalars meet `right` vectors: one 4-byte slot of `right` holds
//             kGroup values of one column, one group of `left` the kGroup values it meets, as
//             4 bytes in each of kPlanes planes
// Both products (query by keys, weights by values) are left [rows, n] x right [n, columns].

#include "cpu/exponential2.h"

// Bytes of one group of a `left` row.
template <typename Dot>
constexpr int kLeftBytes = 4 * Dot::kPlanes;

// exp(x) for x <= 0.
inline F exponential(F x) { return exponential2(Simd::mul(x, Simd::set(kLog2E))); }

// tanh(x), after Cephes' tanhf: a polynomial near zero, 1 - 2 / (exp(2|x|) + 1) elsewhere.
inline F hyperbolic_tangent(F x) {
  const F size = Simd::max(x, Simd::sub(Simd::set(0.0f), x));
  const F z = Simd::mul(x, x);
  F p = Simd::set(-5.70498872745e-3f);
  p = Simd::fma(p, z, Simd::set(2.06390887954e-2f));
  p = Simd::fma(p, z, Simd::set(-5.37397155531e-2f));
  p = Simd::fma(p, z, Simd::set(1.33314422036e-1f));
  p = Simd::fma(p, z, Simd::set(-3.33332819422e-1f));
  const F near = Simd::fma(Simd::mul(p, z), size, size);
  const F e = exponential(Simd::mul(size, Simd::set(-2.0f)));  // exp(-2|x|)
  const F far = Simd::div(Simd::sub(Simd::set(1.0f), e), Simd::add(Simd::set(1.0f), e));
  const F positive = Simd::select_less(size, Simd::set(0.625f), near, far);
  return Simd::select_less(x, Simd::set(0.0f), Simd::sub(Simd::set(0.0f), positive), positive);
}

// out[row, column] = left[row, :] . right[:, column] for a tile of Rows x (Blocks * kLanes). Each
// element adds its products by rising index, so a tile's shape does not show in its values.
template <typename Dot, int Rows, int Blocks>
void multiply_tile(const uint8_t* left, size_t left_stride, const uint8_t* right, size_t right_stride,
                   int groups, const int32_t* totals, float* out, size_t out_stride) {
  typename Dot::Sum sums[Dot::kPlanes][Rows][Blocks];
  for (auto& plane : sums) {
    for (auto& row : plane) {
      for (auto& sum : row) sum = Dot::zero();
    }
  }
  for (int group = 0; group < groups; ++group) {
    typename Dot::Vector vectors[Blocks];
    for (int block = 0; block < Blocks; ++block) {
      vectors[block] = Dot::load_right(right + 4 * Simd::kLanes * block);
    }
    for (int row = 0; row < Rows; ++row) {
      for (int plane = 0; plane < Dot::kPlanes; ++plane) {
        const auto scalars = Dot::broadcast(left + row * left_stride + 4 * plane);
        for (int block = 0; block < Blocks; ++block) {
          sums[plane][row][block] = Dot::step(sums[plane][row][block], scalars, vectors[block]);
        }
      }
    }
    left += kLeftBytes<Dot>;
    right += right_stride;
  }
  for (int row = 0; row < Rows; ++row) {
    for (int block = 0; block < Blocks; ++block) {
      const F result = Dot::finish(sums[0][row][block], sums[Dot::kPlanes - 1][row][block], totals[row]);
      Simd::store(out + row * out_stride + Simd::kLanes * block, result);
    }
  }
}

// left [rows, n]: one row every `stride` bytes; totals: sum of each row's integers.
struct Left {
  const uint8_t* data;
  size_t stride;
  const int32_t* totals;
  int rows;
};

template <typename Dot, int Rows>
void multiply(const Left& left, const uint8_t* right, size_t right_stride, int groups, int columns, float* out,
              size_t out_stride) {
  if constexpr (Rows > 1) {
    if (left.rows < Rows) {
      multiply<Dot, Rows - 1>(left, right, right_stride, groups, columns, out, out_stride);
      return;
    }
  }
  constexpr int kWide = Simd::kBlocks * Simd::kLanes;
  int column = 0;
  for (; column + kWide <= columns; column += kWide) {
    multiply_tile<Dot, Rows, Simd::kBlocks>(left.data, left.stride, right + 4 * column, right_stride, groups,
                                            left.totals, out + column, out_stride);
  }
  for (; column < columns; column += Simd::kLanes) {
    multiply_tile<Dot, Rows, 1>(left.data, left.stride, right + 4 * column, right_stride, groups, left.totals,
                                out + column, out_stride);
  }
}

// kLanes * kGroup channels of one cached row; beyond head_size, and for a key never read, zeros.
template <typename Dot>
typename Dot::Vector load_channels(const typename Dot::Cache* cache, int64_t offset, int channel, int head_size) {
  constexpr int kChunk = Simd::kLanes * Dot::kGroup;
  if (offset >= 0 && channel + kChunk <= head_size) return Dot::load_cached(cache + offset + channel);
  typename Dot::Cache padded[kChunk] = {};
  if (offset >= 0) {
    for (int i = 0; channel + i < head_size; ++i) padded[i] = cache[offset + channel + i];
  }
  return Dot::load_cached(padded);
}

// Keys as `right` [head_size, kSplit]: a transposition of kLanes keys by kLanes slots at a time.
template <typename Dot>
void pack_keys(const Split& split, int begin, int end, uint8_t* packed) {
  const auto* cache = static_cast<const typename Dot::Cache*>(split.key_cache);
  for (int key = begin; key < end; key += Simd::kLanes) {
    for (int channel = 0; channel < split.head_size; channel += Simd::kLanes * Dot::kGroup) {
      typename Dot::Vector rows[Simd::kLanes];
      for (int i = 0; i < Simd::kLanes; ++i) {
        rows[i] = load_channels<Dot>(cache, split.offsets[key + i], channel, split.head_size);
      }
      Dot::transpose(rows);
      for (int i = 0; i < Simd::kLanes; ++i) {
        Dot::store_right(packed + 4 * ((channel / Dot::kGroup + i) * size_t{kSplit} + key), rows[i]);
      }
    }
  }
}

// Values as `right` [kSplit, channels]: kGroup neighbouring keys share a slot.
template <typename Dot>
void pack_values(const Split& split, int begin, int end, uint8_t* packed) {
  const auto* cache = static_cast<const typename Dot::Cache*>(split.value_cache);
  const size_t stride = padded_channels(split.head_size);
  for (int key = begin; key < end; key += Dot::kGroup) {
    for (int channel = 0; channel < split.head_size; channel += Simd::kLanes * Dot::kGroup) {
      typename Dot::Vector rows[Dot::kGroup];
      for (int i = 0; i < Dot::kGroup; ++i) {
        rows[i] = load_channels<Dot>(cache, split.offsets[key + i], channel, split.head_size);
      }
      Dot::interleave(rows);
      for (int i = 0; i < Dot::kGroup; ++i) {
        Dot::store_right(packed + 4 * (key / Dot::kGroup * stride + channel + Simd::kLanes * i), rows[i]);
      }
    }
  }
}

// Sets logits [from, to) of the split to minus infinity, within [begin, end).
inline void hide(float* logits, int64_t from, int64_t to, int begin, int end) {
  if (from < begin) from = begin;
  if (to > end) to = end;
  for (int64_t key = from; key < to; ++key) logits[key] = -__builtin_inff();
}

// Causal mask, window and sinks of one position, and the keys that are never read.
inline void mask(const Split& split, int64_t position, int begin, int end, float* logits) {
  const int64_t own = position - split.first_key;
  hide(logits, own + 1, kSplit, begin, end);
  if (split.window >= 0) {
    const int64_t sinks = split.sinks > split.first_key ? split.sinks - split.first_key : 0;
    hide(logits, sinks, own - split.window + 1, begin, end);
  }
}

// Logits of one row, `scale` times its products, capped where the node has a softcap (a masked one
// stays minus infinity); returns their scale from then on.
inline float cap_logits(const Split& split, float scale, int begin, int end, float* logits) {
  if (split.softcap == 0) return scale;
  const F cap = Simd::set(split.softcap), factor = Simd::set(scale / split.softcap);
  for (int key = begin; key < end; key += Simd::kLanes) {
    const F logit = Simd::load(logits + key);
    const F capped = Simd::mul(hyperbolic_tangent(Simd::mul(logit, factor)), cap);
    Simd::store(logits + key, Simd::select_less(logit, Simd::set(-3.0e38f), logit, capped));
  }
  return 1.0f;
}

// Products of one row -> weights exp(logit - max) as a row of `left`; returns the max, sets the sum.
template <typename Dot>
float softmax_row(const Split& split, float scale, int begin, int end, float* products, uint8_t* weights,
                  float* sum, int32_t* total) {
  scale = cap_logits(split, scale, begin, end, products);
  F top = Simd::set(-__builtin_inff());
  for (int key = begin; key < end; key += Simd::kLanes) top = Simd::max(top, Simd::load(products + key));
  const float max = Simd::max_lane(top);
  const F shift = Simd::set(max < -3.0e38f ? 0.0f : max);  // no visible key: all weights become 0
  const F factor = Simd::set(scale * kLog2E);
  typename Dot::WeightSum added = Dot::no_weights();
  for (int key = begin; key < end; key += Simd::kLanes) {
    const F below = Simd::sub(Simd::load(products + key), shift);  // never above 0
    Dot::store_weights(weights + key / Dot::kGroup * kLeftBytes<Dot>, exponential2(Simd::mul(below, factor)), added);
  }
  Dot::finish_weights(added, sum, total);
  return max * scale;
}

// into = into * exp(into.max - max) + from * exp(from.max - max), max the larger of both.
inline void merge_row(const State& into, int64_t row, const State& from, int64_t from_row, int head_size) {
  const float old_max = into.max[row], new_max = from.max[from_row];
  if (new_max < -3.0e38f) return;  // the later split showed this row nothing
  const bool rises = new_max > old_max;
  const float max = rises ? new_max : old_max;
  const F less = exponential(Simd::set(rises ? old_max - new_max : new_max - old_max)), one = Simd::set(1.0f);
  const F keep = rises ? less : one, add = rises ? one : less;
  const size_t stride = padded_channels(head_size);
  float* out = into.out + row * stride;
  const float* more = from.out + from_row * stride;
  for (int channel = 0; channel < head_size; channel += Simd::kLanes) {
    const F kept = Simd::mul(Simd::load(out + channel), keep);
    Simd::store(out + channel, Simd::fma(Simd::load(more + channel), add, kept));
  }
  into.max[row] = max;
  into.sum[row] =
      Simd::first(Simd::fma(Simd::set(from.sum[from_row]), add, Simd::mul(Simd::set(into.sum[row]), keep)));
}

template <typename Dot>
void prepare_query(const float* query, int head_size, const QueryRows& rows, int64_t row) {
  uint8_t* left = rows.data + row * 4 * padded_channels(head_size);
  Dot::prepare(query, round_up(head_size, Simd::kLanes), left, rows.scale + row, rows.total + row);
}

template <typename Dot>
void attend(const Split& split, const State& state, uint8_t* scratch) {
  const int begin = split.begin / kKeyBlock * kKeyBlock, end = round_up(split.end, kKeyBlock);
  const int channels = padded_channels(split.head_size);
  const int columns = round_up(split.head_size, Simd::kLanes);
  uint8_t* keys = scratch;
  uint8_t* values = keys + size_t{4} * kSplit * channels;
  auto* logits = reinterpret_cast<float*>(values + size_t{4} * kSplit * channels);
  auto* weights = reinterpret_cast<uint8_t*>(logits + Simd::kRows * kSplit);
  auto* partial = reinterpret_cast<float*>(weights + size_t{4} * Simd::kRows * kSplit);
  const int first_group = begin / Dot::kGroup;
  bool holes = false;
  for (int key = begin; key < end; ++key) holes |= split.offsets[key] < 0;

  pack_keys<Dot>(split, begin, end, keys);
  pack_values<Dot>(split, begin, end, values);
  for (int row = 0; row < split.rows; row += Simd::kRows) {
    const int rows = split.rows - row < Simd::kRows ? split.rows - row : Simd::kRows;
    const size_t query_stride = size_t{4} * channels, weight_stride = size_t{4} * kSplit;
    const Left query{split.query.data + row * query_stride, query_stride, split.query.total + row, rows};
    multiply<Dot, Simd::kRows>(query, keys + 4 * begin, 4 * kSplit, round_up(split.head_size, Dot::kGroup) / Dot::kGroup,
                               end - begin, logits + begin, kSplit);
    float max[Simd::kRows], sum[Simd::kRows];
    int32_t totals[Simd::kRows];
    for (int i = 0; i < rows; ++i) {
      float* own = logits + i * kSplit;
      mask(split, split.first_position + (row + i) / split.group, begin, end, own);
      for (int key = begin; holes && key < end; ++key) {
        if (split.offsets[key] < 0) own[key] = -__builtin_inff();
      }
      max[i] = softmax_row<Dot>(split, split.query.scale[row + i], begin, end, own, weights + i * weight_stride,
                                sum + i, totals + i);
    }
    const Left weight{weights + first_group * kLeftBytes<Dot>, weight_stride, totals, rows};
    multiply<Dot, Simd::kRows>(weight, values + size_t{4} * first_group * channels, 4 * channels,
                               (end - begin) / Dot::kGroup, columns, partial, channels);
    for (int i = 0; i < rows; ++i) merge_row(state, row + i, State{max, sum, partial}, i, split.head_size);
  }
}

template <typename Dot>
void finish_row(const State& state, int64_t row, const Finish& finish) {
  float max = state.max[row], sum = state.sum[row];
  F keep = Simd::set(1.0f), denominator = Simd::set(sum);
  if (finish.head_sink != nullptr) {
    const float top = max > *finish.head_sink ? max : *finish.head_sink;
    keep = exponential(Simd::set(max - top));
    denominator = Simd::fma(Simd::set(Dot::kWeightUnit), exponential(Simd::set(*finish.head_sink - top)),
                            Simd::mul(denominator, keep));
  }
  const bool empty = !(Simd::first(denominator) > 0.0f);
  const F factor = empty ? Simd::set(0.0f) : Simd::div(keep, denominator);
  const float* out = state.out + row * padded_channels(finish.head_size);
  for (int channel = 0; channel < finish.head_size; channel += Simd::kLanes) {
    float block[Simd::kLanes];
    Simd::store(block, Simd::mul(Simd::load(out + channel), factor));
    for (int i = 0; i < Simd::kLanes && channel + i < finish.head_size; ++i) {
      const float scale = finish.v_scale == nullptr ? 1.0f : finish.v_scale[channel + i];
      finish.out[channel + i] = block[i] * scale;
    }
  }
}

template <typename Dot>
constexpr AttentionKernels make_kernels() {
  return {&prepare_query<Dot>, &attend<Dot>, &merge_row, &finish_row<Dot>};
}
