// Int8Linear in plain C++, for any machine.
#include "cpu/int8_linear/int8_linear_outputs.h"

namespace kvfold {
namespace {

constexpr std::size_t kWords = kBlockBytes / 2;  // pairs of int8 in a block

std::int16_t low(std::int16_t pair) { return static_cast<std::int16_t>(pair * 256) >> 8; }
std::int16_t high(std::int16_t pair) { return pair >> 8; }

// sum[16] of one token. A pair of products fits int16 (2 * 127 * 127), so pairs are taken as int16 words
// and split by shifts, eight lanes at a time: loops that compilers vectorise for any instruction set.
void dot_block(const std::uint8_t* q, const std::int8_t* weight, std::size_t in_blocks, std::int32_t* sum) {
  std::int32_t lanes[kWords] = {};
  for (std::size_t k = 0; k < in_blocks; ++k, q += kGroupIn, weight += kBlockBytes) {
    std::int16_t activation[2], words[kWords];
    std::memcpy(activation, q, sizeof activation);
    std::memcpy(words, weight, sizeof words);
    const std::int16_t low0 = low(activation[0]), low1 = low(activation[1]);
    const std::int16_t high0 = high(activation[0]), high1 = high(activation[1]);
    const std::int16_t lows[8] = {low0, low1, low0, low1, low0, low1, low0, low1};
    const std::int16_t highs[8] = {high0, high1, high0, high1, high0, high1, high0, high1};
    for (std::size_t i = 0; i < kWords; i += 8) {
      for (std::size_t j = 0; j < 8; ++j) {
        const std::int16_t word = words[i + j];
        lanes[i + j] += static_cast<std::int16_t>(lows[j] * low(word) + highs[j] * high(word));
      }
    }
  }
  for (std::size_t o = 0; o < kTileOut; ++o) sum[o] = lanes[2 * o] + lanes[2 * o + 1];
}

void multiply(const Int8Product& p, Range tokens, Range blocks) {
  const std::size_t row_bytes = p.in_blocks * kGroupIn;
  for (std::size_t block = blocks.first; block < blocks.last; ++block) {
    const std::int8_t* weight = p.weight + block * p.in_blocks * kBlockBytes;
    for (std::size_t token = tokens.first; token < tokens.last; ++token) {
      std::int32_t total[kTileOut];
      dot_block(p.rows.q + token * row_bytes, weight, p.in_blocks, total);
      write_block(p, token, block, total);
    }
  }
}

}  // namespace

const Int8Kernel int8_kernel_portable = {quantize_rows<0>, multiply};

}  // namespace kvfold
