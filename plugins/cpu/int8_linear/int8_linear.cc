// Int8Linear's orchestration: check the inputs, quantise the tokens once, split the product over ONNX
// Runtime's pool. The arithmetic is in int8_linear_<isa>.cc.
#include "cpu/int8_linear/int8_linear.h"

#include <algorithm>

#include "cpu/isa.h"

namespace kvfold {
namespace {

// Below 2^31 / 127^2 inputs an int32 holds every sum.
constexpr int64_t kMaxInFeatures = 131072;
// A pool dispatch costs some microseconds; smaller jobs run on the calling thread.
constexpr std::size_t kSerialElements = 16384;
constexpr std::size_t kSerialProducts = 65536;
constexpr std::size_t kTokensPerChunk = 8;
// A chunk is a contiguous piece of the weight. Few tokens stream it from memory: long chunks, so that
// the kernel's prefetch pays. Many tokens compute: enough chunks for many threads.
constexpr std::size_t kChunkBytes = 262144;
constexpr std::size_t kChunkProducts = std::size_t{1} << 22;
constexpr std::size_t kGranuleBlocks = 3;  // a panel of the AVX512 kernel

const Int8Kernel& active_kernel() {
#if defined(__x86_64__)
  static const Int8Kernel* const kernels[] = {&int8_kernel_portable, &int8_kernel_avx2, &int8_kernel_avx512vnni};
  static_assert(sizeof kernels / sizeof *kernels == kIsaCount, "one for each instruction set");
  return *kernels[static_cast<int>(active_isa())];
#else
  return int8_kernel_portable;
#endif
}

std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

// Quantised tokens of the current call. It belongs to the thread that runs the session and only ever
// grows, so that no call of a steady state allocates; workers reach it through plain pointers.
struct Scratch {
  std::vector<std::uint8_t> q;
  std::vector<float> scale;
  std::vector<float> planes;  // the product of each plane, where a token has two
};

template <typename T>
T* grown(std::vector<T>& buffer, std::size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

std::size_t positive(const Attributes& attributes, const char* name, int64_t limit) {
  const int64_t value = attributes.integer(name);
  if (value < 1 || value > limit) {
    throw KernelFailure(std::string(name) + " is " + std::to_string(value) + ", expected 1 to " +
                        std::to_string(limit));
  }
  return static_cast<std::size_t>(value);
}

InputActivation activation_named(const std::string& name) {
  if (name == "none") return InputActivation::none;
  if (name == "swiglu") return InputActivation::swiglu;
  throw KernelFailure("input_activation is '" + name + "', expected 'none' or 'swiglu'");
}

std::size_t planes_of(int64_t activation_bits) {
  if (activation_bits == 8) return 1;
  if (activation_bits == 16) return 2;
  throw KernelFailure("activation_bits is " + std::to_string(activation_bits) + ", expected 8 or 16");
}

void expect(const char* name, const Shape& shape, std::initializer_list<std::size_t> expected) {
  const Shape wanted(expected.begin(), expected.end());
  if (shape != wanted) {
    throw KernelFailure(std::string(name) + " has shape " + to_string(shape) + ", expected " + to_string(wanted));
  }
}

void quantize(const Context& context, const Int8Kernel& kernel, const Int8Quantization& job, std::size_t tokens) {
  const std::size_t chunk = tokens * job.in_features <= kSerialElements ? tokens : kTokensPerChunk;
  context.parallel_for(static_cast<int64_t>(ceil_div(tokens, chunk)), [&](int64_t i) {
    thread_local std::vector<float> row;
    const std::size_t first = static_cast<std::size_t>(i) * chunk;
    kernel.quantize(job, {first, std::min(tokens, first + chunk)}, grown(row, job.in_features));
  });
}

// An even number, so that two threads finish together.
std::size_t chunk_count(std::size_t tokens, std::size_t bytes) {
  if (tokens * bytes <= kSerialProducts) return 1;
  return 2 * ceil_div(bytes, 2 * std::min(kChunkBytes, ceil_div(kChunkProducts, tokens)));
}

void multiply(const Context& context, const Int8Kernel& kernel, const Int8Product& product, std::size_t rows) {
  const std::size_t blocks = ceil_div(product.out_features, kBlockOut);
  const std::size_t granules = ceil_div(blocks, kGranuleBlocks);
  const std::size_t bytes = blocks * product.in_blocks * kBlockBytes;
  const std::size_t chunks = std::min(granules, chunk_count(rows, bytes));
  context.parallel_for(static_cast<int64_t>(chunks), [&](int64_t i) {
    const auto index = static_cast<std::size_t>(i);
    const std::size_t first = granules * index / chunks * kGranuleBlocks;
    const std::size_t last = std::min(blocks, granules * (index + 1) / chunks * kGranuleBlocks);
    kernel.multiply(product, {0, rows}, {first, last});
  });
}

// y = high + low (+ bias): the second half of the formula with 16-bit activations.
void add_planes(const Context& context, const float* planes, const float* bias, std::size_t out_features,
                std::size_t tokens, float* y) {
  const std::size_t chunk = tokens * out_features <= kSerialElements ? tokens : kTokensPerChunk;
  context.parallel_for(static_cast<int64_t>(ceil_div(tokens, chunk)), [&](int64_t i) {
    const std::size_t first = static_cast<std::size_t>(i) * chunk, last = std::min(tokens, first + chunk);
    for (std::size_t t = first; t < last; ++t) {
      const float* high = planes + 2 * t * out_features;
      const float* low = high + out_features;
      float* row = y + t * out_features;
      for (std::size_t n = 0; n < out_features; ++n) row[n] = high[n] + low[n];
      if (bias == nullptr) continue;
      for (std::size_t n = 0; n < out_features; ++n) row[n] += bias[n];
    }
  });
}

}  // namespace

Int8Linear::Int8Linear(const Attributes& attributes)
    : in_features_(positive(attributes, "in_features", kMaxInFeatures)),
      out_features_(positive(attributes, "out_features", INT32_MAX)),
      activation_(activation_named(attributes.text("input_activation", "none"))),
      planes_(planes_of(attributes.integer("activation_bits", 8))) {}

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
  const std::size_t blocks = ceil_div(out_features_, kBlockOut), in_blocks = ceil_div(in_features_, kBlockIn);
  const auto weight = context.input<int8_t>(1, "weight");
  expect("weight", weight.shape, {blocks, in_blocks, kBlockOut, kBlockIn});
  const auto weight_scale = context.input<float>(2, "weight_scale");
  expect("weight_scale", weight_scale.shape, {out_features_});
  const auto weight_sum = context.input<int32_t>(3, "weight_sum");
  expect("weight_sum", weight_sum.shape, {blocks * kBlockOut});
  const auto bias = context.input<float>(4, "bias");
  if (bias.present()) expect("bias", bias.shape, {out_features_});
  Int8Product product = {};
  product.weight = weight.data;
  product.weight_scale = weight_scale.data;
  product.weight_sum = weight_sum.data;
  product.bias = bias.data;
  product.in_blocks = in_blocks;
  product.out_features = out_features_;
  return product;
}

void Int8Linear::compute(Context& context) const {
  const auto x = context.input<float>(0, "x");
  const std::size_t columns = in_features_ * (activation_ == InputActivation::swiglu ? 2 : 1);
  if (x.shape.size() != 2 || x.shape[1] != static_cast<int64_t>(columns)) {
    throw KernelFailure("x has shape " + to_string(x.shape) + ", expected [tokens, " + std::to_string(columns) + "]");
  }
  const auto tokens = static_cast<std::size_t>(x.shape[0]);
  Int8Product product = packed_weight(context);
  float* y = context.output<float>(0, {x.shape[0], static_cast<int64_t>(out_features_)});
  if (tokens == 0) return;

  thread_local Scratch scratch;
  const std::size_t rows = tokens * planes_;
  std::uint8_t* q = grown(scratch.q, rows * product.in_blocks * kBlockIn);
  float* scale = grown(scratch.scale, rows);
  const Int8Kernel& kernel = active_kernel();
  quantize(context, kernel, {x.data, in_features_, activation_, product.in_blocks, planes_, q, scale}, tokens);
  product.q = q;
  product.scale = scale;
  if (planes_ == 1) {
    product.y = y;
    multiply(context, kernel, product, rows);
    return;
  }
  const float* bias = product.bias;
  product.bias = nullptr;
  product.y = grown(scratch.planes, rows * out_features_);
  multiply(context, kernel, product, rows);
  add_planes(context, product.y, bias, out_features_, tokens, y);
}

}  // namespace kvfold
