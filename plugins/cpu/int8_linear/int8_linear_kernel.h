// Int8Linear between its orchestration (int8_linear.cc) and one kernel per instruction set.
//
// Law: a token's outputs are the same bits for every instruction set, thread count and batch. Integer
// sums are exact, and each float expression is written once, in int8_linear_rows.h, compiled without
// FMA contraction.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvfold {

constexpr std::size_t kBlockOut = 16;  // plugins/int8_linear/schema.py: BLOCK_OUT, BLOCK_IN
constexpr std::size_t kBlockIn = 4;
constexpr float kLowPlane = 256.0f;    // LOW_PLANE
constexpr std::size_t kBlockBytes = kBlockOut * kBlockIn;

enum class InputActivation { none, swiglu };

// Tokens to quantise: x [tokens, in_features], or [tokens, 2 * in_features] (gate, up) for swiglu.
struct Int8Quantization {
  const float* x;
  std::size_t in_features;
  InputActivation activation;
  std::size_t in_blocks;  // ceil(in_features / 4)
  std::size_t planes;     // 1: 8-bit activations; 2: 16-bit, a second row a token holds the remainder
  std::uint8_t* q;        // [tokens * planes, in_blocks * 4], in the form the same kernel's multiply reads
  float* scale;           // [tokens * planes]
};

// Quantised rows times a packed weight.
struct Int8Product {
  const std::uint8_t* q;
  const float* scale;
  const std::int8_t* weight;         // [ceil(out / 16), in_blocks, 16, 4]
  const float* weight_scale;         // [out_features]
  const std::int32_t* weight_sum;    // [ceil(out / 16) * 16]
  const float* bias;                 // [out_features] or null
  std::size_t in_blocks;
  std::size_t out_features;
  float* y;  // [rows, out_features]
};

struct Range {
  std::size_t first, last;  // last is excluded
};

struct Int8Kernel {
  // Quantises these tokens; `row` is room for in_features floats, owned by the caller's thread.
  void (*quantize)(const Int8Quantization&, Range tokens, float* row);
  // Writes y[rows, 16 * blocks].
  void (*multiply)(const Int8Product&, Range rows, Range blocks);
};

extern const Int8Kernel int8_kernel_portable;
extern const Int8Kernel int8_kernel_avx2;
extern const Int8Kernel int8_kernel_avx512vnni;

}  // namespace kvfold
