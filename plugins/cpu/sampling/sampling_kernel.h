// Sampling between its orchestration (sampling.cc) and one kernel per instruction set: passes over a row.
//
// Rows are read in blocks of kBlock logits; the last one is taken as if -inf followed. Rows in our own
// memory are padded like that, so that every store of a whole block has room.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvfold {

constexpr std::size_t kBlock = 256;
constexpr std::size_t kPeaks = 16;  // peak i of a block is the largest of its logits i, i + 16, i + 32, ...
constexpr std::size_t kBuckets = 256;

constexpr std::size_t blocks_of(std::size_t count) { return (count + kBlock - 1) / kBlock; }

struct Survey {
  float max;
  bool has_nan;
};

// weight = 2^((x - max) * factor), or 0 where that is less than `least`.
struct Weighing {
  float max;
  float factor;
  float least;
};

struct Range {
  float least, most;
};

// bucket of x = (most - x) * scale, kBuckets - 1 at most.
struct Scale {
  float most;
  float scale;
};

// The logits of a bucket: how many, and from where to where.
struct Extent {
  std::size_t count;
  Range range;
};

struct SamplingKernel {
  // Writes kPeaks peaks a block.
  Survey (*survey)(const float* x, std::size_t count, float* peaks);
  // out = x, -inf where the mask has no bit.
  void (*mask)(const float* x, std::size_t count, const std::uint32_t* mask, float* out);
  // Weights, and their sum in each block; returns the sum of all.
  double (*weigh)(const float* x, std::size_t count, const Weighing& weighing, float* weights, double* sums);
  // Indices and values of those in a range, in order; returns how many. `peaks` may be null.
  std::size_t (*gather)(const float* x, std::size_t count, const float* peaks, Range range, std::int32_t* ids,
                        float* values);
  void (*distribute)(const float* x, std::size_t count, Scale scale, std::uint8_t* buckets);
  Extent (*extent)(const float* x, std::size_t count, Scale scale, std::size_t bucket);
};

extern const SamplingKernel kSamplingPortable;
extern const SamplingKernel kSamplingAvx2;
extern const SamplingKernel kSamplingAvx512;

}  // namespace kvfold
