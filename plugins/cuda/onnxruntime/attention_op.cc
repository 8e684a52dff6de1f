#include "cuda/onnxruntime/attention_op.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>

#include "cuda/cpp/calls.h"
#include "cuda/cpp/launcher.h"
#include "cuda/cpp/node/descriptions.h"
#include "cuda/cpp/open_kernels.h"
#include "cuda/cpp/text.h"

namespace kvfold::cuda {
namespace {

constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr auto kInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
constexpr auto kFloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto kBfloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
constexpr auto kUint8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr size_t kScratch = 3;  // the output that is the scratch of a call

uint64_t address(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

std::string dtype_of(ONNXTensorElementDataType type) {
  static const std::map<ONNXTensorElementDataType, const char*> names = {
      {kFloat, "float32"}, {kInt32, "int32"}, {kInt8, "int8"}, {kFloat16, "float16"}, {kBfloat16, "bfloat16"}};
  const auto found = names.find(type);
  return found == names.end() ? text("element type ", static_cast<int>(type)) : found->second;
}

// Positions of the schema's inputs that a node has.
std::vector<size_t> present_inputs(const kvfold::Attributes& attributes) {
  const std::vector<std::string> names = attributes.input_names();
  std::vector<size_t> positions;
  for (size_t index = 0; index < std::min(names.size(), schema_inputs().size()); ++index) {
    if (!names[index].empty()) positions.push_back(index);
  }
  return positions;
}

Node node_of(const kvfold::Attributes& attributes, const std::vector<size_t>& positions) {
  std::string inputs;
  for (const size_t position : positions) inputs += (inputs.empty() ? "" : ",") + schema_inputs()[position];
  Values values = {{"inputs", inputs}};
  for (const auto& [name, type] : attribute_types()) {
    if (type == "int") {
      if (const auto found = attributes.find_integer(name.c_str())) values.emplace_back(name, *found);
    } else if (type == "float") {
      if (const auto found = attributes.find_real(name.c_str())) values.emplace_back(name, double{*found});
    } else if (const auto found = attributes.find_text(name.c_str())) {
      values.emplace_back(name, *found);
    }
  }
  return read_node(attributes.node_name(), values);
}

}  // namespace

PagedAttentionOp::PagedAttentionOp(const kvfold::Attributes& attributes)
    : node_(node_of(attributes, present_inputs(attributes))), positions_(present_inputs(attributes)),
      kernels_(kernels_of(attributes.text("kernels", ""))) {
  Launcher::shared().load_all(kernels_);
}

void PagedAttentionOp::compute(const Context& context) const {
  std::vector<Tensor> tensors;
  Buffers buffers;
  for (size_t index = 0; index < positions_.size(); ++index) {
    AnyTensor tensor = context.any_input(positions_[index]);
    buffers[node_.inputs[index]] = address(tensor.data);
    tensors.push_back({dtype_of(tensor.type), std::move(tensor.shape)});
  }
  const AttentionSpec spec = spec_of(node_, tensors);
  const Shapes shapes = shapes_of(node_, tensors);
  const std::vector<std::string> outputs = node_.outputs();
  for (size_t index = 1; index < outputs.size(); ++index) {
    const int32_t input = node_.aliased_input(static_cast<int32_t>(index));
    const void* const output = context.output<uint8_t>(index, tensors[input].dims);
    if (address(output) != buffers[node_.inputs[input]]) {
      node_.fail(outputs[index] + " is not where its input is; caches are updated in place only");
    }
  }
  buffers["output"] = address(
      context.output<uint8_t>(0, {shapes.tokens, spec.attributes.num_heads * spec.head_size}));
  if (shapes.tokens == 0) return;
  Launcher& launcher = Launcher::shared();
  const int64_t bytes = workspace_of(kernels_, launcher.architecture(), spec, shapes);
  const void* const scratch = context.output<uint8_t>(kScratch, {bytes});
  if (scratch == nullptr) node_.fail("has no fourth output for its scratch; build the engine again with this kvfold");
  launcher.launch(kernels_, spec, shapes, buffers, address(scratch), static_cast<CudaStream>(context.gpu_stream()));
}

template <ONNXTensorElementDataType kActivation, ONNXTensorElementDataType kCache>
const OpDeclaration& TypedPagedAttention<kActivation, kCache>::declaration() {
  static const OpDeclaration declaration = {
      "PagedAttention",
      {{kActivation}, {kActivation, true}, {kActivation, true}, {kCache}, {kCache}, {kInt32}, {kInt32}, {kInt32},
       {kFloat, true}, {kFloat, true}, {kInt32, true}, {kFloat, true}, {kFloat, true}, {kFloat, true}, {kFloat, true},
       {kFloat, true}, {kUint8, true}},
      {{kActivation}, {kCache, true}, {kCache, true}, {kUint8, true}},
      {{3, 1}, {4, 2}},
      "CUDAExecutionProvider",
  };
  return declaration;
}

const std::vector<const OrtCustomOp*>& onnxruntime_ops() {
  static const std::vector<const OrtCustomOp*> ops = {
      custom_op<TypedPagedAttention<kFloat16, kInt8>>(),
      custom_op<TypedPagedAttention<kFloat16, kFloat16>>(),
      custom_op<TypedPagedAttention<kBfloat16, kInt8>>(),
      custom_op<TypedPagedAttention<kBfloat16, kBfloat16>>(),
  };
  return ops;
}

}  // namespace kvfold::cuda
