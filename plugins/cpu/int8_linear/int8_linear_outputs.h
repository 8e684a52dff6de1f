// Int8Linear's last step, in plain C++ that every instruction-set file compiles for itself, as linear_rows.h.
#pragma once

#include "cpu/int8_linear/int8_linear_kernel.h"
#include "cpu/linear/linear_rows.h"

namespace kvfold {
namespace {

// y = float(sum) * (scale * weight_scale) + bias, for `count` outputs of a block.
inline void write_outputs(const Int8Product& p, std::size_t row, std::size_t first, std::size_t count,
                          const std::int32_t* sum) {
  const float scale = p.rows.scale[row];
  const float* weight_scale = p.weight_scale + first;
  float* y = p.y + row * p.out_features + first;
  for (std::size_t i = 0; i < count; ++i) y[i] = static_cast<float>(sum[i]) * (scale * weight_scale[i]);
  if (p.bias == nullptr) return;
  for (std::size_t i = 0; i < count; ++i) y[i] += p.bias[first + i];
}

inline void write_block(const Int8Product& p, std::size_t row, std::size_t block, const std::int32_t* sum) {
  const std::size_t first = block * kTileOut;
  if (first + kTileOut <= p.out_features) {
    write_outputs(p, row, first, kTileOut, sum);  // a constant count, so that it is unrolled
  } else {
    write_outputs(p, row, first, p.out_features - first, sum);
  }
}

}  // namespace
}  // namespace kvfold
