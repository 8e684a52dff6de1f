// Sampling for a caller that is no ONNX Runtime: plain C functions over rows of logits, called by ctypes,
// which drops Python's lock meanwhile. The contract is plugins/sampling/schema.py; sampling_calls.py holds
// the same layouts.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace kvfold {

constexpr int kSamplingVersion = 1;  // sampling_calls.py: VERSION

// How one row is sampled; a null pointer has nothing to say. Ids are in [0, vocab), each once.
struct SamplingRow {
  double draw;   // in [0, 1)
  double top_p;  // 1: off
  const std::uint32_t* mask;
  const std::int32_t* bias_ids;
  const float* bias_values;
  const std::int32_t* seen_ids;
  const std::int32_t* seen_counts;
  const std::int32_t* banned_ids;
  std::int32_t bias_count;
  std::int32_t seen_count;
  std::int32_t banned_count;
  std::int32_t top_k;   // 0: off
  std::int32_t likely;  // likeliest tokens to tell of; -1: no log probabilities at all
  float temperature;    // 0: the likeliest token
  float min_p;          // 0: off
  float repetition_penalty;
  float frequency_penalty;
  float presence_penalty;
};

// Where results go, an entry a row; likely_* have `likely_capacity` a row.
struct SamplingResults {
  std::int32_t* tokens;  // -1 where the status is not 0
  std::int32_t* status;
  double* logprobs;
  std::int32_t* likely_ids;
  double* likely_logprobs;
  std::int64_t likely_capacity;
};

}  // namespace kvfold

extern "C" {
// kSamplingVersion * 65536 + the bytes of a SamplingRow.
KVFOLD_EXPORT std::int32_t kvfold_sampling_layout();

// Samples a token for each row of float32 logits [rows, vocab]; returns how many rows have none, or -1 when
// memory ran out.
KVFOLD_EXPORT std::int64_t kvfold_sample(const float* logits, std::int64_t rows, std::int64_t vocab,
                                         const kvfold::SamplingRow* const* params,
                                         const kvfold::SamplingResults* results);

// Log probabilities of the tokens given in results->tokens, and of the `likely` likeliest; returns as above.
KVFOLD_EXPORT std::int64_t kvfold_score(const float* logits, std::int64_t rows, std::int64_t vocab, std::int32_t likely,
                                        const kvfold::SamplingResults* results);
}
