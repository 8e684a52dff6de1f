// The border between PagedAttention's orchestration and its instruction sets.
//
// LAW: a row's bits depend on its own query and on the keys it sees, never on what shares its
// batch, on how its sequence was cut into steps, or on the number of threads. Therefore
//   * keys are processed in splits of kSplit, aligned to absolute positions;
//   * one split gives each row a partial (max, sum, out), always computed in the same order, in
//     which a key that the row does not see adds exactly zero;
//   * partials are merged into the row's state one after another, by rising position.
//
// int8 caches: logits and outputs are exact integer dot products, so their order cannot matter.
// A query (times scale and k_scale) and a split's softmax weights are rounded to integers of
// 15 bits, at most kIntegerLimit, which two int8 planes (256 * high + low) can hold.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"

namespace kvfold {

constexpr int kSplit = 256;
constexpr int kKeyBlock = 16;      // keys are masked, packed and multiplied in blocks of this many
constexpr int kMaxHeadSize = 256;  // sums of kSplit or kMaxHeadSize products stay below 2^31
constexpr int kIntegerLimit = 127 * 256 + 127;
constexpr int kMaxRowTile = 8;  // rows that one instruction set computes together, at most

static constexpr int round_up(int value, int step) { return (value + step - 1) / step * step; }

// Channels of a row in scratch memory, a multiple of every vector's width.
static constexpr int padded_channels(int head_size) { return round_up(head_size, 64); }

// Running softmax of rows: out holds sum over keys of exp(logit - max) * value, not yet divided.
struct State {
  float* max;  // [rows]
  float* sum;  // [rows]
  float* out;  // [rows, padded_channels]
};

// Prepared query rows; what `data` holds is the instruction set's own business.
struct QueryRows {
  uint8_t* data;   // [rows, padded_channels * 4]
  float* scale;    // [rows]: logit = scale * product
  int32_t* total;  // [rows]: sum of the integers of a row
};

// Rows of one sequence and KV head against the keys [first_key, first_key + kSplit).
struct Split {
  const void* key_cache;
  const void* value_cache;
  const int64_t* offsets;  // [kSplit] index of each key's first channel in the caches; -1: never read
  int64_t first_key;       // a multiple of kSplit
  int begin, end;          // the keys that some row may see, relative to first_key
  int rows;
  QueryRows query;
  int64_t first_position;  // row r has position first_position + r / group
  int group;               // query heads of the KV head
  int64_t window;          // -1: off
  int64_t sinks;
  float softcap;  // 0: off
  int head_size;
};

struct Finish {
  const float* head_sink;  // null or one logit
  const float* v_scale;    // null or [head_size]
  float* out;              // [head_size]
  int head_size;
};

// What each instruction set offers for one cache type.
struct AttentionKernels {
  // Turns one query row (float [padded_channels], zero padded, all factors applied) into row `row`.
  void (*prepare_query)(const float* query, int head_size, const QueryRows& rows, int64_t row);
  // Merges the split's partials into `state`. `scratch` has kScratchBytes, aligned to 64.
  void (*attend)(const Split& split, const State& state, uint8_t* scratch);
  // Merges one row: `from` is the partial of a later split.
  void (*merge)(const State& into, int64_t row, const State& from, int64_t from_row, int head_size);
  // Divides one row, applies v_scale and the head sink. A row that sees no key becomes zero.
  void (*finish)(const State& state, int64_t row, const Finish& finish);
};

// Packed keys and values of a split, then logits, weights and partial sums of a tile of rows.
constexpr size_t kScratchBytes =
    2 * sizeof(float) * kSplit * kMaxHeadSize + kMaxRowTile * sizeof(float) * (2 * kSplit + kMaxHeadSize);

extern const AttentionKernels kAttentionFloatPortable, kAttentionInt8Portable;
#if defined(__x86_64__)
extern const AttentionKernels kAttentionFloatAvx2, kAttentionInt8Avx2;
extern const AttentionKernels kAttentionFloatAvx512Vnni, kAttentionInt8Avx512Vnni;
#endif

// The active instruction set's kernels for caches of type Cache.
template <typename Cache>
const AttentionKernels& attention_kernels();

}  // namespace kvfold
