// Int8Linear: its declaration and its weight. The arithmetic is in int8_linear_<isa>.cc.
#include "cpu/int8_linear/int8_linear.h"

#include "cpu/isa.h"

namespace kvfold {
namespace {

constexpr std::size_t kGranule = 3;  // a panel of the AVX512 kernel

const Int8Kernel& active_kernel() {
#if defined(__x86_64__)
  static const Int8Kernel* const kernels[] = {&int8_kernel_portable, &int8_kernel_avx2, &int8_kernel_avx512vnni};
  static_assert(sizeof kernels / sizeof *kernels == kIsaCount, "one for each instruction set");
  return *kernels[static_cast<int>(active_isa())];
#else
  return int8_kernel_portable;
#endif
}

}  // namespace

const OpDeclaration& Int8Linear::declaration() {
  static const OpDeclaration declaration = {
      "Int8Linear",
      {{ElementType<float>::value},
       {ElementType<int8_t>::value},
       {ElementType<float>::value},
       {ElementType<int32_t>::value},
       {ElementType<float>::value, true}},
      {{ElementType<float>::value}},
      {},
  };
  return declaration;
}

Int8Product Int8Linear::packed_weight(const Context& context) const {
  const std::size_t out_features = attributes_.out_features;
  const std::size_t tiles = ceil_div(out_features, kTileOut), in_blocks = ceil_div(attributes_.in_features, kGroupIn);
  const auto weight = context.input<int8_t>(1, "weight");
  expect("weight", weight.shape, {tiles, in_blocks, kTileOut, kGroupIn});
  const auto weight_scale = context.input<float>(2, "weight_scale");
  expect("weight_scale", weight_scale.shape, {out_features});
  const auto weight_sum = context.input<int32_t>(3, "weight_sum");
  expect("weight_sum", weight_sum.shape, {tiles * kTileOut});
  const auto bias = context.input<float>(4, "bias");
  if (bias.present()) expect("bias", bias.shape, {out_features});
  Int8Product product = {};
  product.bias = bias.data;
  product.weight = weight.data;
  product.weight_scale = weight_scale.data;
  product.weight_sum = weight_sum.data;
  product.in_blocks = in_blocks;
  return product;
}

void Int8Linear::compute(Context& context) const {
  const Int8Product product = packed_weight(context);
  const WeightLayout layout = {ceil_div(attributes_.out_features, kTileOut), product.in_blocks * kBlockBytes, kGranule,
                               product.in_blocks * kGroupIn};
  LinearCall(context, attributes_, layout).run(active_kernel(), product);
}

}  // namespace kvfold
