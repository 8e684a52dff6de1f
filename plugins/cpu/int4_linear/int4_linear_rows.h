// Quantising tokens for Int4Linear, each block of 32 by a power of two of its own, in plain C++ that every
// instruction-set file compiles for itself.
//
// Integer sums of a block start at the bits of 1.5 * 2^23 * 2^-e: as a float, the sum then counts in steps of 2^-e,
// and the power of two costs a kernel nothing.
#pragma once

#include "cpu/int4_linear/int4_linear_kernel.h"
#include "cpu/linear/linear_rows.h"

namespace kvfold {
namespace {

constexpr std::int32_t kMaxShift = 32;  // plugins/int4_linear/schema.py: MAX_SHIFT
constexpr std::int32_t kCenter = 8;     // CENTER there

inline float power_of_two(std::int32_t exponent) { return bits_float((127 + exponent) << 23); }

// start, zero and sum of a block of a row, whose q are written; `factor` is 2^-e.
inline void finish_block(const QuantizedRows& rows, std::size_t row, std::size_t block, float factor) {
  const std::size_t at = row * (rows.padded_in / kInt4Block) + block;
  const std::uint8_t* q = rows.q + row * rows.padded_in + block * kInt4Block;
  std::int32_t total = 0;
  for (std::size_t k = 0; k < kInt4Block; ++k) total += static_cast<std::int8_t>(q[k]);
  const bool minima = rows.sum != nullptr;
  rows.start[at] = kRound * factor;
  rows.zero[at] = (kRound + static_cast<float>(minima ? 0 : kCenter * total)) * factor;
  if (minima) rows.sum[at] = static_cast<float>(total) * factor;
}

// A block's x, and zeros where the row ends before.
inline const float* padded_block(const float* x, std::size_t n, std::size_t block, float (&room)[kInt4Block]) {
  const std::size_t first = block * kInt4Block, count = n - first;
  if (count >= kInt4Block) return x + first;
  std::memset(room, 0, sizeof room);
  std::memcpy(room, x + first, count * sizeof *x);
  return room;
}

inline void quantize_block(const TokenQuantization& job, const float* x, std::int32_t largest, std::size_t row,
                           std::size_t block) {
  const QuantizedRows& rows = job.rows;
  const float scale = rows.scale[row];
  const std::int32_t distance = (largest - max_magnitude_bits(x, kInt4Block)) >> 23;
  const std::int32_t shift = distance < kMaxShift ? distance : kMaxShift;
  const float finer = power_of_two(shift), factor = power_of_two(-shift);
  std::uint8_t* q = rows.q + row * rows.padded_in + block * kInt4Block;
  for (std::size_t k = 0; k < kInt4Block; ++k) q[k] = static_cast<std::uint8_t>(round_int8(x[k] / scale * finer));
  finish_block(rows, row, block, factor);
  if (job.planes == 1) return;
  const float step = scale * factor, low_step = step / kLowPlane;
  float left[kInt4Block];
  for (std::size_t k = 0; k < kInt4Block; ++k) {
    const float kept = static_cast<float>(static_cast<std::int8_t>(q[k])) * step;
    left[k] = x[k] - kept;
  }
  std::uint8_t* low = q + rows.padded_in;
  for (std::size_t k = 0; k < kInt4Block; ++k) low[k] = static_cast<std::uint8_t>(round_int8(left[k] / low_step));
  finish_block(rows, row + 1, block, factor);
}

inline void quantize_row_blocks(const TokenQuantization& job, Range tokens, float* room) {
  for_tokens(job, tokens, room, [&](const float* x, std::size_t row) {
    const std::int32_t largest = max_magnitude_bits(x, job.in_features);
    job.rows.scale[row] = scale_of(largest);
    if (job.planes == 2) job.rows.scale[row + 1] = job.rows.scale[row] / kLowPlane;
    float padded[kInt4Block];
    for (std::size_t block = 0; block * kInt4Block < job.rows.padded_in; ++block) {
      quantize_block(job, padded_block(x, job.in_features, block, padded), largest, row, block);
    }
  });
}

}  // namespace
}  // namespace kvfold
