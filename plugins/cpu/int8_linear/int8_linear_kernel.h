// Int8Linear between its orchestration (int8_linear.cc) and one kernel per instruction set.
#pragma once

#include "cpu/linear/linear_kernel.h"

namespace kvfold {

constexpr std::size_t kBlockBytes = kTileOut * kGroupIn;

struct Int8Product : LinearProduct {
  const std::int8_t* weight;       // [ceil(out / 16), in_blocks, 16, 4]
  const float* weight_scale;       // [out_features]
  const std::int32_t* weight_sum;  // [ceil(out / 16) * 16]
  std::size_t in_blocks;           // ceil(in / 4)
};

using Int8Kernel = LinearKernel<Int8Product>;

extern const Int8Kernel int8_kernel_portable;
extern const Int8Kernel int8_kernel_avx2;
extern const Int8Kernel int8_kernel_avx512vnni;

}  // namespace kvfold
