// What linears with quantised weights have in common, between their orchestration (linear_op.h) and one kernel
// per instruction set: tokens are quantised once, then multiplied by a packed weight.
//
// Law: a token's outputs are the same bits for every instruction set, thread count and batch. Integer
// sums are exact, and each float expression is compiled without FMA contraction.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvfold {

constexpr float kLowPlane = 256.0f;     // plugins/int8_linear/schema.py: LOW_PLANE
constexpr std::size_t kTileOut = 16;    // BLOCK_OUT there, TILE_OUT of plugins/int4_linear/schema.py
constexpr std::size_t kGroupIn = 4;     // inputs of an output that lie side by side
constexpr std::size_t kBlockInputs = 32;  // BLOCK of int4_linear

enum class InputActivation { none, swiglu, geglu };

struct Range {
  std::size_t first, last;  // last is excluded
};

// Rows of int8 activations: a token has one, or two where its second plane holds the remainder.
struct QuantizedRows {
  std::uint8_t* q;  // [rows, padded_in], in the form the same kernel's multiply reads
  float* scale;     // [rows]
  // Of each 32 activations of a row, [rows, padded_in / 32], for weights in blocks, or null.
  float* start;  // its bits are where a block's integer sum starts
  float* zero;   // what a product of 0 ends at: taken off the float whose bits the sum is
  float* sum;    // the sum of what the activations stand for, in units of the row's scale; null without minima
  std::size_t padded_in;
};

// Tokens to quantise: x [tokens, in_features], or [tokens, 2 * in_features] (gate, up) with an activation.
struct TokenQuantization {
  const float* x;
  std::size_t in_features;
  InputActivation activation;
  std::size_t planes;  // 1: 8-bit activations; 2: 16-bit
  QuantizedRows rows;
};

// Quantised rows times a packed weight; an op adds its weight.
struct LinearProduct {
  QuantizedRows rows;
  const float* bias;  // [out_features] or null
  std::size_t out_features;
  float* y;  // [rows, out_features]
};

template <typename Product>
struct LinearKernel {
  // Quantises these tokens; `row` is room for in_features floats, owned by the caller's thread.
  void (*quantize)(const TokenQuantization&, Range tokens, float* row);
  // Writes y[rows, 16 * tiles].
  void (*multiply)(const Product&, Range rows, Range tiles);
};

}  // namespace kvfold
