// Int8Linear in plain C++, for any machine.
#include "int8_linear_rows.h"

namespace kvfold {
namespace {

// sum[16] of one token: products of int8 fit int16, which compilers turn into widening multiply-adds.
void dot_block(const std::int8_t* q, const std::int8_t* weight, std::size_t in_blocks, std::int32_t* sum) {
  std::int32_t lanes[kBlockBytes] = {};
  for (std::size_t k = 0; k < in_blocks; ++k) {
    std::int8_t activation[kBlockBytes];
    for (std::size_t i = 0; i < kBlockBytes; ++i) activation[i] = q[k * kBlockIn + i % kBlockIn];
    for (std::size_t i = 0; i < kBlockBytes; ++i) {
      lanes[i] += static_cast<std::int16_t>(activation[i] * weight[k * kBlockBytes + i]);
    }
  }
  for (std::size_t o = 0; o < kBlockOut; ++o) {
    const std::int32_t* lane = lanes + o * kBlockIn;
    sum[o] = lane[0] + lane[1] + lane[2] + lane[3];
  }
}

void multiply(const Int8Product& p, Range tokens, Range blocks) {
  const std::size_t row_bytes = p.in_blocks * kBlockIn;
  for (std::size_t block = blocks.first; block < blocks.last; ++block) {
    const std::int8_t* weight = p.weight + block * p.in_blocks * kBlockBytes;
    for (std::size_t token = tokens.first; token < tokens.last; ++token) {
      std::int32_t total[kBlockOut];
      dot_block(reinterpret_cast<const std::int8_t*>(p.q) + token * row_bytes, weight, p.in_blocks, total);
      write_block(p, token, block, total);
    }
  }
}

}  // namespace

const Int8Kernel int8_kernel_portable = {quantize_rows<0>, multiply};

}  // namespace kvfold
