// Int4Linear's last step, in plain C++ that every instruction-set file compiles for itself, as linear_rows.h.
#pragma once

#include "cpu/int4_linear/int4_linear_kernel.h"
#include "cpu/linear/linear_rows.h"

namespace kvfold {
namespace {

// y = sum * scale + bias, for `count` outputs of a tile.
inline void write_sums(const Int4Product& p, std::size_t row, std::size_t first, std::size_t count, const float* sum) {
  const float scale = p.rows.scale[row];
  float* y = p.y + row * p.out_features + first;
  for (std::size_t i = 0; i < count; ++i) y[i] = sum[i] * scale;
  if (p.bias == nullptr) return;
  for (std::size_t i = 0; i < count; ++i) y[i] += p.bias[first + i];
}

inline void write_tile(const Int4Product& p, std::size_t row, std::size_t tile, const float* sum) {
  const std::size_t first = tile * kTileOut;
  if (first + kTileOut <= p.out_features) {
    write_sums(p, row, first, kTileOut, sum);  // a constant count, so that it is unrolled
  } else {
    write_sums(p, row, first, p.out_features - first, sum);
  }
}

}  // namespace
}  // namespace kvfold
