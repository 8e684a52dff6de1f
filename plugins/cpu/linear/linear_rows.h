// Quantising tokens, in plain C++ that every instruction-set file compiles for itself.
//
// One source, no intrinsics and no FMA contraction (-ffp-contract=off): the vector width changes, the
// bits do not. Everything is in an anonymous namespace, so that no AVX code leaks into a portable caller.
#pragma once

#include <cstring>

#include "cpu/linear/linear_kernel.h"

#define KVFOLD_INLINE inline __attribute__((always_inline))

namespace kvfold {
namespace {

inline std::int32_t float_bits(float value) {
  std::int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bits_float(std::int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds half to even into the low bits
constexpr std::int32_t kRoundBits = 0x4B400000;
constexpr std::int32_t kExpLimitBits = 0x42B20000;  // 89

// exp(x) within 2 ulp for x in [-87, 88.3]; 0 below -87.7, infinity above 88.4; a NaN is taken for 89.
// Cephes' expf: reduce by multiples of ln 2 in two parts, then a polynomial of degree 6. It clamps as
// integers, because compilers turn two float comparisons into branches and then do not vectorise.
inline float exp_polynomial(float argument) {
  const std::int32_t bits = float_bits(argument), magnitude = bits & 0x7FFFFFFF;
  const float x = bits_float((magnitude < kExpLimitBits ? magnitude : kExpLimitBits) | (bits - magnitude));
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const std::int32_t exponent = float_bits(shifted) - kRoundBits + 127;
  return p * bits_float((exponent > 0 ? exponent : 0) << 23);
}

// row = silu(gate) * up
inline void swiglu_row(const float* gate, const float* up, std::size_t n, float* row) {
  for (std::size_t k = 0; k < n; ++k) row[k] = gate[k] / (1.0f + exp_polynomial(-gate[k])) * up[k];
}

// row = gelu(gate) * up, GELU by tanh (arXiv 1606.08415): 0.5 (1 + tanh(z / 2)) is the sigmoid of z.
inline void geglu_row(const float* gate, const float* up, std::size_t n, float* row) {
  for (std::size_t k = 0; k < n; ++k) {
    const float z = gate[k] * (1.59576912f + 0.0713548163f * (gate[k] * gate[k]));  // 2 sqrt(2 / pi) (x + 0.044715 x^3)
    row[k] = gate[k] / (1.0f + exp_polynomial(-z)) * up[k];
  }
}

// Largest |x| as float bits: integer order is float order, with infinity and then NaN above all numbers.
inline std::int32_t max_magnitude_bits(const float* x, std::size_t n) {
  std::int32_t largest = 0;
  for (std::size_t k = 0; k < n; ++k) {
    const std::int32_t magnitude = float_bits(x[k]) & 0x7FFFFFFF;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

// A row's scale from its largest magnitude; NaN for one with NaN or infinity: all its outputs become NaN, as the
// formula has it, and no other row's do.
inline float scale_of(std::int32_t largest) {
  if (largest >= 0x7F800000) return bits_float(0x7FC00000);
  const float quotient = bits_float(largest) / 127.0f;
  return quotient == 0.0f ? 1.0f : quotient;
}

// The nearest integer; of a NaN any.
inline std::int32_t round_int8(float x) {
  std::int32_t rounded = float_bits(x + kRound) - kRoundBits;
  rounded = rounded < -127 ? -127 : rounded;  // a denormal scale can be off by more than half a step
  return rounded > 127 ? 127 : rounded;
}

// q = Offset + round(x / scale), and the scale.
template <int Offset>
inline float quantize_row(const float* x, std::size_t n, std::size_t padded, std::uint8_t* q) {
  const float scale = scale_of(max_magnitude_bits(x, n));
  for (std::size_t k = 0; k < n; ++k) q[k] = static_cast<std::uint8_t>(round_int8(x[k] / scale) + Offset);
  std::memset(q + n, Offset, padded - n);
  return scale;
}

// What quantize_row rounded off, kLowPlane times finer; `row` is room for n floats and may be x.
template <int Offset>
inline float quantize_remainder(const float* x, std::size_t n, std::size_t padded, const std::uint8_t* high,
                                float scale, float* row, std::uint8_t* q) {
  const float low_scale = scale / kLowPlane;
  for (std::size_t k = 0; k < n; ++k) {
    const float kept = static_cast<float>(static_cast<std::int8_t>(high[k] - Offset)) * scale;
    row[k] = x[k] - kept;
  }
  for (std::size_t k = 0; k < n; ++k) q[k] = static_cast<std::uint8_t>(round_int8(row[k] / low_scale) + Offset);
  std::memset(q + n, Offset, padded - n);
  return low_scale;
}

// quantize(x, its first row) for each token, activated; `row` is room for in_features floats.
template <typename Quantize>
KVFOLD_INLINE void for_tokens(const TokenQuantization& job, Range tokens, float* row, const Quantize& quantize) {
  const std::size_t n = job.in_features;
  const bool activates = job.activation != InputActivation::none;
  const auto activate = job.activation == InputActivation::swiglu ? swiglu_row : geglu_row;
  for (std::size_t t = tokens.first; t < tokens.last; ++t) {
    const float* x = job.x + t * n * (activates ? 2 : 1);
    if (activates) {
      activate(x, x + n, n, row);
      x = row;
    }
    quantize(x, t * job.planes);
  }
}

template <int Offset>
void quantize_rows(const TokenQuantization& job, Range tokens, float* row) {
  const std::size_t n = job.in_features, padded = job.rows.padded_in;
  for_tokens(job, tokens, row, [&](const float* x, std::size_t first) {
    std::uint8_t* q = job.rows.q + first * padded;
    float* scale = job.rows.scale + first;
    scale[0] = quantize_row<Offset>(x, n, padded, q);
    if (job.planes == 2) scale[1] = quantize_remainder<Offset>(x, n, padded, q, scale[0], row, q + padded);
  });
}

}  // namespace
}  // namespace kvfold
