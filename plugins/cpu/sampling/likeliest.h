// The likeliest tokens of a row: sets and orders of them, by falling logit and, of equal ones, by rising id.
// Plain C++ over what an instruction set's passes gather.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/sampling/sampling_kernel.h"

namespace kvfold {

// A memory that only ever grows, so that no call of a steady state allocates.
template <typename T>
T* grown(std::vector<T>& buffer, std::size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

// Logits of a row; `peaks` are those of its survey, or null.
struct Logits {
  const float* values;
  std::size_t count;
  const float* peaks;
};

// Some of them, by rising index.
struct Candidates {
  std::int32_t* ids;
  float* logits;
  std::size_t count;
};

class Gathered {
 public:
  Candidates within(const SamplingKernel& kernel, const Logits& row, Range range);
  Candidates at_least(const SamplingKernel& kernel, const Logits& row, float least) {
    return within(kernel, row, {least, __builtin_inff()});
  }

 private:
  std::vector<std::int32_t> ids_;
  std::vector<float> logits_;
};

// Grows as logits fall and, for equal logits, as places grow.
inline std::uint64_t order_key(float logit, std::size_t place) {
  logit += 0.0f;  // -0 becomes 0
  std::uint32_t bits;
  std::memcpy(&bits, &logit, sizeof bits);
  const std::uint32_t falling = bits >> 31 ? bits : bits ^ 0x7FFFFFFFu;
  return std::uint64_t{falling} << 32 | place;
}
inline std::size_t place_of(std::uint64_t key) { return key & 0xFFFFFFFFu; }

class Likeliest {
 public:
  // The `wanted` likeliest, of `row.count` at most; the row has peaks.
  Candidates of(const SamplingKernel& kernel, const Logits& row, std::size_t wanted);

 private:
  float threshold(const Logits& row, std::size_t wanted);
  static Candidates first_of(Candidates found, const Candidates& above, std::size_t wanted);

  Gathered gathered_, above_;
  std::vector<float> peaks_;
  std::vector<std::uint64_t> keys_;
};

}  // namespace kvfold
