// Int4Linear: its declaration and its weight. The arithmetic is in int4_linear_<isa>.cc.
#include "cpu/int4_linear/int4_linear.h"

#include "cpu/isa.h"

namespace kvfold {
namespace {

constexpr std::size_t kGranule = 2;  // tiles that the AVX512 kernel takes at once

const Int4Kernel& active_kernel() {
#if defined(__x86_64__)
  static const Int4Kernel* const kernels[] = {&int4_kernel_portable, &int4_kernel_avx2, &int4_kernel_avx512vnni};
  static_assert(sizeof kernels / sizeof *kernels == kIsaCount, "one for each instruction set");
  return *kernels[static_cast<int>(active_isa())];
#else
  return int4_kernel_portable;
#endif
}

}  // namespace

const OpDeclaration& Int4Linear::declaration() {
  static const OpDeclaration declaration = {
      "Int4Linear",
      {{ElementType<float>::value},
       {ElementType<uint8_t>::value},
       {ElementType<Float16>::value},
       {ElementType<Float16>::value, true},
       {ElementType<float>::value, true}},
      {{ElementType<float>::value}},
      {},
  };
  return declaration;
}

Int4Product Int4Linear::packed_weight(const Context& context) const {
  const std::size_t tiles = ceil_div(attributes_.out_features, kTileOut);
  const std::size_t blocks = ceil_div(attributes_.in_features, kInt4Block);
  const auto weight = context.input<uint8_t>(1, "weight");
  expect("weight", weight.shape, {tiles, blocks, kInt4Block / (2 * kGroupIn), kTileOut, kGroupIn});
  const auto weight_scale = context.input<Float16>(2, "weight_scale");
  expect("weight_scale", weight_scale.shape, {tiles, blocks, kTileOut});
  const auto weight_minimum = context.input<Float16>(3, "weight_minimum");
  if (weight_minimum.present()) expect("weight_minimum", weight_minimum.shape, {tiles, blocks, kTileOut});
  const auto bias = context.input<float>(4, "bias");
  if (bias.present()) expect("bias", bias.shape, {attributes_.out_features});
  Int4Product product = {};
  product.bias = bias.data;
  product.weight = weight.data;
  product.weight_scale = &weight_scale.data->bits;
  product.weight_minimum = weight_minimum.present() ? &weight_minimum.data->bits : nullptr;
  product.blocks = blocks;
  return product;
}

void Int4Linear::compute(Context& context) const {
  const Int4Product product = packed_weight(context);
  const bool minima = product.weight_minimum != nullptr;
  const std::size_t block_bytes = kInt4BlockBytes + kTileOut * sizeof(std::uint16_t) * (minima ? 2 : 1);
  const WeightLayout layout = {ceil_div(attributes_.out_features, kTileOut), product.blocks * block_bytes, kGranule,
                               product.blocks * kInt4Block, true, minima};
  LinearCall(context, attributes_, layout).run(active_kernel(), product);
}

}  // namespace kvfold
