#include "cpu/linear/linear_op.h"

#include <algorithm>

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

// Quantised tokens of the current call. It belongs to the thread that runs the session and only ever
// grows, so that no call of a steady state allocates; workers reach it through plain pointers.
struct Scratch {
  std::vector<std::uint8_t> q;
  std::vector<float> scale;
  std::vector<float> start, zero, sum;
  std::vector<float> planes;  // the product of each plane, where a token has two
};

Scratch& scratch() {
  thread_local Scratch of_thread;
  return of_thread;
}

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
  if (name == "geglu") return InputActivation::geglu;
  throw KernelFailure("input_activation is '" + name + "', expected 'none', 'swiglu' or 'geglu'");
}

std::size_t planes_of(int64_t activation_bits) {
  if (activation_bits == 8) return 1;
  if (activation_bits == 16) return 2;
  throw KernelFailure("activation_bits is " + std::to_string(activation_bits) + ", expected 8 or 16");
}

}  // namespace

LinearAttributes::LinearAttributes(const Attributes& attributes)
    : in_features(positive(attributes, "in_features", kMaxInFeatures)),
      out_features(positive(attributes, "out_features", INT32_MAX)),
      activation(activation_named(attributes.text("input_activation", "none"))),
      planes(planes_of(attributes.integer("activation_bits", 8))) {}

void expect(const char* name, const Shape& shape, std::initializer_list<std::size_t> expected) {
  const Shape wanted(expected.begin(), expected.end());
  if (shape != wanted) {
    throw KernelFailure(std::string(name) + " has shape " + to_string(shape) + ", expected " + to_string(wanted));
  }
}

LinearCall::LinearCall(const Context& context, const LinearAttributes& attributes, const WeightLayout& layout)
    : context_(context), attributes_(attributes), layout_(layout) {
  const auto x = context.input<float>(0, "x");
  const std::size_t columns = attributes.in_features * (attributes.activation == InputActivation::none ? 1 : 2);
  if (x.shape.size() != 2 || x.shape[1] != static_cast<int64_t>(columns)) {
    throw KernelFailure("x has shape " + to_string(x.shape) + ", expected [tokens, " + std::to_string(columns) + "]");
  }
  tokens_ = static_cast<std::size_t>(x.shape[0]);
  const std::size_t rows = tokens_ * attributes.planes;
  Scratch& room = scratch();
  const std::size_t blocks = rows * (layout.padded_in / kBlockInputs);
  const QuantizedRows quantized = {grown(room.q, rows * layout.padded_in),
                                   grown(room.scale, rows),
                                   layout.blocks ? grown(room.start, blocks) : nullptr,
                                   layout.blocks ? grown(room.zero, blocks) : nullptr,
                                   layout.minima ? grown(room.sum, blocks) : nullptr,
                                   layout.padded_in};
  job_ = {x.data, attributes.in_features, attributes.activation, attributes.planes, quantized};
}

// The op's output; `product` becomes where the kernel writes: there, or room for both planes.
float* LinearCall::output(float** product) const {
  float* y = context_.output<float>(
      0, {static_cast<int64_t>(tokens_), static_cast<int64_t>(attributes_.out_features)});
  const std::size_t planes = attributes_.planes;
  *product = planes == 1 ? y : grown(scratch().planes, tokens_ * planes * attributes_.out_features);
  return y;
}

void LinearCall::quantize(void (*quantize)(const TokenQuantization&, Range, float*)) const {
  const std::size_t chunk = tokens_ * job_.in_features <= kSerialElements ? tokens_ : kTokensPerChunk;
  context_.parallel_for(static_cast<int64_t>(ceil_div(tokens_, chunk)), [&](int64_t i) {
    thread_local std::vector<float> row;
    const std::size_t first = static_cast<std::size_t>(i) * chunk;
    quantize(job_, {first, std::min(tokens_, first + chunk)}, grown(row, job_.in_features));
  });
}

// An even number, so that two threads finish together.
std::size_t LinearCall::chunk_count(std::size_t rows, std::size_t granules) const {
  const std::size_t products = layout_.tiles * kTileOut * layout_.padded_in;
  if (rows * products <= kSerialProducts) return 1;
  const std::size_t by_bytes = ceil_div(layout_.tiles * layout_.tile_bytes, 2 * kChunkBytes);
  const std::size_t by_products = ceil_div(products, 2 * ceil_div(kChunkProducts, rows));
  return std::min(granules, 2 * std::max(by_bytes, by_products));
}

// y = high + low (+ bias): the second half of the formula with 16-bit activations.
void LinearCall::add_planes(const float* planes, const float* bias, float* y) const {
  const std::size_t out_features = attributes_.out_features;
  const std::size_t chunk = tokens_ * out_features <= kSerialElements ? tokens_ : kTokensPerChunk;
  context_.parallel_for(static_cast<int64_t>(ceil_div(tokens_, chunk)), [&](int64_t i) {
    const std::size_t first = static_cast<std::size_t>(i) * chunk, last = std::min(tokens_, first + chunk);
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

}  // namespace kvfold
