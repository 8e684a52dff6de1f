// Int8Embedding: a row of a packed table for each token. What it reads comes from memory once, so one
// implementation serves every instruction set.
#include "cpu/int8_embedding/int8_embedding.h"

#include <algorithm>

namespace kvfold {
namespace {

constexpr std::size_t kBlockRows = 16;
constexpr std::size_t kBlockColumns = 4;
// A pool dispatch costs some microseconds; smaller jobs run on the calling thread.
constexpr std::size_t kSerialElements = 65536;
constexpr std::size_t kTokensPerChunk = 8;

std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

std::size_t size_named(const Attributes& attributes, const char* name) {
  const int64_t value = attributes.integer(name);
  if (value < 1 || value > INT32_MAX) {
    throw KernelFailure(std::string(name) + " is " + std::to_string(value) + ", expected 1 to " +
                        std::to_string(INT32_MAX));
  }
  return static_cast<std::size_t>(value);
}

void expect(const char* name, const Shape& shape, std::initializer_list<std::size_t> expected) {
  const Shape wanted(expected.begin(), expected.end());
  if (shape != wanted) {
    throw KernelFailure(std::string(name) + " has shape " + to_string(shape) + ", expected " + to_string(wanted));
  }
}

}  // namespace

Int8Embedding::Int8Embedding(const Attributes& attributes)
    : rows_(size_named(attributes, "rows")), columns_(size_named(attributes, "columns")) {}

const OpDeclaration& Int8Embedding::declaration() {
  static const OpDeclaration declaration = {
      "Int8Embedding",
      {{ElementType<int64_t>::value}, {ElementType<int8_t>::value}, {ElementType<float>::value}},
      {{ElementType<float>::value}},
      {},
  };
  return declaration;
}

void Int8Embedding::compute(Context& context) const {
  const auto ids = context.input<int64_t>(0, "ids");
  if (ids.shape.size() != 1) throw KernelFailure("ids has shape " + to_string(ids.shape) + ", expected [tokens]");
  const std::size_t blocks = ceil_div(columns_, kBlockColumns);
  const auto weight = context.input<int8_t>(1, "weight");
  expect("weight", weight.shape, {ceil_div(rows_, kBlockRows), blocks, kBlockRows, kBlockColumns});
  const auto weight_scale = context.input<float>(2, "weight_scale");
  expect("weight_scale", weight_scale.shape, {rows_});
  const auto tokens = static_cast<std::size_t>(ids.shape[0]);
  for (std::size_t t = 0; t < tokens; ++t) {
    if (ids.data[t] < 0 || ids.data[t] >= static_cast<int64_t>(rows_)) {
      throw KernelFailure("ids holds " + std::to_string(ids.data[t]) + ", the table has " + std::to_string(rows_) +
                          " rows");
    }
  }
  float* y = context.output<float>(0, {ids.shape[0], static_cast<int64_t>(columns_)});

  const std::size_t chunk = std::max<std::size_t>(1, tokens * columns_ <= kSerialElements ? tokens : kTokensPerChunk);
  context.parallel_for(static_cast<int64_t>(ceil_div(tokens, chunk)), [&](int64_t i) {
    const std::size_t first = static_cast<std::size_t>(i) * chunk, last = std::min(tokens, first + chunk);
    for (std::size_t t = first; t < last; ++t) {
      const auto id = static_cast<std::size_t>(ids.data[t]);
      const std::int8_t* row = weight.data + (id / kBlockRows * blocks * kBlockRows + id % kBlockRows) * kBlockColumns;
      const float scale = weight_scale.data[id];
      float* out = y + t * columns_;
      for (std::size_t k = 0; k < columns_; ++k) {
        out[k] = static_cast<float>(row[k / kBlockColumns * kBlockRows * kBlockColumns + k % kBlockColumns]) * scale;
      }
    }
  });
}

}  // namespace kvfold
