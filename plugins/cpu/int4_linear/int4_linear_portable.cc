// Int4Linear in plain C++, for any machine.
#include "cpu/int4_linear/int4_linear_outputs.h"

namespace kvfold {
namespace {

constexpr std::size_t kLanes = kTileOut * kGroupIn;
constexpr std::size_t kGroups = kInt4Block / (2 * kGroupIn);  // of a half of a block

// The float32 of a float16 that is a number: the exponent's bias is moved by a product, subnormal numbers too.
float from_half(std::uint16_t half) {
  const std::int32_t magnitude = (half & 0x7FFF) << 13;
  const float value = bits_float(magnitude) * bits_float(0x77800000);  // 2^112
  return bits_float(float_bits(value) | static_cast<std::int32_t>(static_cast<std::uint32_t>(half & 0x8000) << 16));
}

// sum[16] of one block, from `start`. Eight products of 15 * 127 fit int16, so lanes of 4 inputs a tile's outputs
// are kept as int16: loops that compilers vectorise for any instruction set.
void dot_block(const std::uint8_t* q, const std::uint8_t* weight, std::int32_t start, std::int32_t* sum) {
  std::int16_t lanes[kLanes] = {};
  for (std::size_t g = 0; g < kGroups; ++g, q += kGroupIn, weight += kLanes) {
    std::int16_t low[8], high[8];  // two outputs' activations: a vector register
    for (std::size_t i = 0; i < 8; ++i) {
      low[i] = static_cast<std::int8_t>(q[i % kGroupIn]);
      high[i] = static_cast<std::int8_t>(q[i % kGroupIn + kInt4Block / 2]);
    }
    for (std::size_t l = 0; l < kLanes; l += 8) {
      for (std::size_t i = 0; i < 8; ++i) {
        const std::int16_t codes = weight[l + i];
        lanes[l + i] = static_cast<std::int16_t>(lanes[l + i] + (codes & 15) * low[i] + (codes >> 4) * high[i]);
      }
    }
  }
  for (std::size_t o = 0; o < kTileOut; ++o) {
    const std::int16_t* lane = lanes + o * kGroupIn;
    sum[o] = start + lane[0] + lane[1] + lane[2] + lane[3];
  }
}

void multiply_tile(const Int4Product& p, std::size_t row, std::size_t tile) {
  float total[kTileOut] = {}, minima[kTileOut] = {};
  const std::uint8_t* q = p.rows.q + row * p.rows.padded_in;
  const std::int32_t* sums = p.rows.sum + row * p.blocks;
  for (std::size_t block = 0; block < p.blocks; ++block) {
    const std::size_t at = tile * p.blocks + block;
    std::int32_t dot[kTileOut];
    const std::int32_t start = p.weight_minimum == nullptr ? sums[block] : 0;
    dot_block(q + block * kInt4Block, p.weight + at * kInt4BlockBytes, start, dot);
    const std::uint16_t* scale = p.weight_scale + at * kTileOut;
    for (std::size_t o = 0; o < kTileOut; ++o) total[o] += static_cast<float>(dot[o]) * from_half(scale[o]);
    if (p.weight_minimum == nullptr) continue;
    const auto sum = static_cast<float>(sums[block]);
    const std::uint16_t* minimum = p.weight_minimum + at * kTileOut;
    for (std::size_t o = 0; o < kTileOut; ++o) minima[o] += sum * from_half(minimum[o]);
  }
  if (p.weight_minimum != nullptr) {
    for (std::size_t o = 0; o < kTileOut; ++o) total[o] += minima[o];
  }
  write_tile(p, row, tile, total);
}

void multiply(const Int4Product& p, Range rows, Range tiles) {
  for (std::size_t tile = tiles.first; tile < tiles.last; ++tile) {
    for (std::size_t row = rows.first; row < rows.last; ++row) multiply_tile(p, row, tile);
  }
}

}  // namespace

const Int4Kernel int4_kernel_portable = {quantize_rows<0>, multiply};

}  // namespace kvfold
