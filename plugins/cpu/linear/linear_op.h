// The orchestration of a linear with quantised weights: check the inputs, quantise the tokens once, split the
// product over ONNX Runtime's pool.
#pragma once

#include <initializer_list>

#include "cpu/linear/linear_kernel.h"
#include "onnxruntime/custom_op.h"

namespace kvfold {

// A node's attributes.
struct LinearAttributes {
  explicit LinearAttributes(const Attributes& attributes);

  std::size_t in_features, out_features;
  InputActivation activation;
  std::size_t planes;
};

// How the packed weight lies in memory, and how it may be cut.
struct WeightLayout {
  std::size_t tiles;       // of 16 outputs
  std::size_t tile_bytes;  // what a tile takes
  std::size_t granule;     // tiles that a kernel takes at once
  std::size_t padded_in;
  bool blocks = false, minima = false;  // whether weights have blocks of inputs, and these have minima
};

inline std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

// Throws unless a tensor has this shape.
void expect(const char* name, const Shape& shape, std::initializer_list<std::size_t> expected);

// One call of an op: what is the same for every weight.
class LinearCall {
 public:
  // Checks x; room for quantised rows belongs to this thread until its next call.
  LinearCall(const Context& context, const LinearAttributes& attributes, const WeightLayout& layout);

  // y from `product`, whose weight and bias are set.
  template <typename Product>
  void run(const LinearKernel<Product>& kernel, Product product) const {
    float* y = output(&product.y);
    if (tokens_ == 0) return;
    quantize(kernel.quantize);
    const float* bias = product.bias;
    product.rows = job_.rows;
    product.out_features = attributes_.out_features;
    if (attributes_.planes > 1) product.bias = nullptr;
    const std::size_t rows = tokens_ * attributes_.planes;
    split(rows, [&](Range tiles) { kernel.multiply(product, {0, rows}, tiles); });
    if (attributes_.planes > 1) add_planes(product.y, bias, y);
  }

 private:
  float* output(float** product) const;
  void quantize(void (*quantize)(const TokenQuantization&, Range, float*)) const;
  template <typename Multiply>
  void split(std::size_t rows, const Multiply& multiply) const {
    const std::size_t granules = ceil_div(layout_.tiles, layout_.granule), chunks = chunk_count(rows, granules);
    context_.parallel_for(static_cast<int64_t>(chunks), [&](int64_t i) {
      const auto index = static_cast<std::size_t>(i);
      const std::size_t first = granules * index / chunks * layout_.granule;
      const std::size_t last = granules * (index + 1) / chunks * layout_.granule;
      multiply(Range{first, last < layout_.tiles ? last : layout_.tiles});
    });
  }
  std::size_t chunk_count(std::size_t rows, std::size_t granules) const;
  void add_planes(const float* planes, const float* bias, float* y) const;

  const Context& context_;
  const LinearAttributes& attributes_;
  WeightLayout layout_;
  std::size_t tokens_;
  TokenQuantization job_;
};

}  // namespace kvfold
