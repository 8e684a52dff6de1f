// What types and shapes of a node's tensors say: plugins/tensorrt/descriptions.py. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cuda/cpp/launches.h"
#include "cuda/cpp/node/attention_spec.h"
#include "cuda/cpp/node/attributes.h"

namespace kvfold::cuda {

constexpr int64_t kUnknown = -1;
using Dims = std::vector<int64_t>;

// One input; a dimension that is not known yet is kUnknown.
struct Tensor {
  std::string dtype;
  Dims dims;
};

// Type that the input or output `name` must have where activations are of type `activation`.
std::string expected_dtype(const Node& node, const std::string& name, const std::string& activation);

// Throws KernelError where the node has not the inputs that it lists, each of its type.
void check_dtypes(const Node& node, const std::vector<std::string>& dtypes);

// Page size and head size. Throws KernelError where shapes disagree or have no kernel.
std::pair<int64_t, int64_t> check_shapes(const Node& node, const std::vector<Dims>& shapes);

// What kernels the node needs. Throws KernelError where a type or shape is not the contract's.
AttentionSpec spec_of(const Node& node, const std::vector<Tensor>& tensors);

// Sizes of a call whose dimensions are all known.
Shapes shapes_of(const Node& node, const std::vector<Tensor>& tensors);

}  // namespace kvfold::cuda
