// Int4Linear between its orchestration (int4_linear.cc) and one kernel per instruction set.
#pragma once

#include "cpu/linear/linear_kernel.h"

namespace kvfold {

constexpr std::size_t kInt4Block = kBlockInputs;                   // inputs of one scale
constexpr std::size_t kInt4BlockBytes = kTileOut * kInt4Block / 2;  // of a tile of outputs

struct Int4Product : LinearProduct {
  const std::uint8_t* weight;           // [ceil(out / 16), blocks, 4, 16, 4], codes in both halves of a byte
  const std::uint16_t* weight_scale;    // float16 [ceil(out / 16), blocks, 16]
  const std::uint16_t* weight_minimum;  // float16, as the scales; or null
  std::size_t blocks;                   // ceil(in / 32)
};

using Int4Kernel = LinearKernel<Int4Product>;

extern const Int4Kernel int4_kernel_portable;
extern const Int4Kernel int4_kernel_avx2;
extern const Int4Kernel int4_kernel_avx512vnni;

}  // namespace kvfold
