#include "tensorrt/cpp/plugin.h"

#include <algorithm>

#include "cuda/cpp/calls.h"
#include "cuda/cpp/launcher.h"
#include "cuda/cpp/node/descriptions.h"
#include "cuda/cpp/text.h"
#include "tensorrt/cpp/log.h"

namespace kvfold::tensorrt {

using namespace cuda;

namespace {

using nvinfer1::DataType;

constexpr int32_t kFailed = 1;
// Asked for where no size can be told: more than there is, so that TensorRT refuses the node.
constexpr size_t kImpossibleBytes = size_t{1} << 60;

// TensorRT's types in the words of the rest of kvfold.
std::string dtype_of(DataType type) {
  switch (type) {
    case DataType::kHALF:
      return "float16";
    case DataType::kBF16:
      return "bfloat16";
    case DataType::kFLOAT:
      return "float32";
    case DataType::kINT8:
      return "int8";
    case DataType::kINT32:
      return "int32";
    case DataType::kINT64:
      return "int64";
    case DataType::kBOOL:
      return "bool";
    case DataType::kUINT8:
      return "uint8";
    case DataType::kFP8:
      return "fp8";
    default:
      return text("TensorRT's data type ", static_cast<int>(type));
  }
}

Dims dims_of(const nvinfer1::Dims& dims) {
  Dims sizes;
  for (int32_t axis = 0; axis < dims.nbDims; ++axis) sizes.push_back(dims.d[axis]);
  return sizes;
}

Dims known_dims(const nvinfer1::DimsExprs& dims) {
  Dims known;
  for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
    known.push_back(dims.d[axis]->isConstant() ? dims.d[axis]->getConstantValue() : kUnknown);
  }
  return known;
}

// A profile's largest shapes.
std::vector<Tensor> largest(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count) {
  std::vector<Tensor> tensors;
  for (int32_t index = 0; index < count; ++index) {
    tensors.push_back({dtype_of(inputs[index].desc.type), dims_of(inputs[index].max)});
  }
  return tensors;
}

}  // namespace

nvinfer1::IPluginCapability* PagedAttention::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* PagedAttention::clone() noexcept {
  return guarded<PagedAttention*>(node_.name, nullptr, [&] { return new PagedAttention(node_, kernels_, builds_); });
}

int32_t PagedAttention::getOutputDataTypes(DataType* outputs, int32_t num_outputs, const DataType* inputs,
                                           int32_t num_inputs) const noexcept {
  return guarded(node_.name, kFailed, [&] {
    std::vector<std::string> dtypes;
    for (int32_t index = 0; index < num_inputs; ++index) dtypes.push_back(dtype_of(inputs[index]));
    check_dtypes(node_, dtypes);
    const std::vector<int32_t> models = models_of_outputs();
    for (int32_t index = 0; index < num_outputs; ++index) outputs[index] = inputs[models.at(index)];
    return 0;
  });
}

int32_t PagedAttention::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                                        const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* outputs,
                                        int32_t num_outputs, nvinfer1::IExprBuilder& builder) noexcept {
  return guarded(node_.name, kFailed, [&] {
    std::vector<Dims> shapes;
    for (int32_t index = 0; index < num_inputs; ++index) shapes.push_back(known_dims(inputs[index]));
    const int64_t head_size = check_shapes(node_, shapes).second;
    const std::vector<int32_t> models = models_of_outputs();
    for (int32_t index = 0; index < num_outputs; ++index) outputs[index] = inputs[models.at(index)];
    outputs[0].d[1] = builder.constant(node_.attributes.num_heads * head_size);
    return 0;
  });
}

bool PagedAttention::supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                               int32_t, int32_t) noexcept {
  return guarded(node_.name, false, [&] {
    std::vector<std::string> names = node_.inputs;
    for (const std::string& output : node_.outputs()) names.push_back(output);
    // No description after `position` may be read.
    const nvinfer1::PluginTensorDesc& query = tensors[std::min(position, node_.index_of("query"))].desc;
    const nvinfer1::PluginTensorDesc& own = tensors[position].desc;
    return own.format == nvinfer1::TensorFormat::kLINEAR &&
           dtype_of(own.type) == expected_dtype(node_, names.at(position), dtype_of(query.type));
  });
}

int32_t PagedAttention::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                        const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept {
  return guarded(node_.name, kFailed, [&] {
    const AttentionSpec spec = spec_of(node_, largest(inputs, num_inputs));
    for (const int architecture : kernels_.architectures()) {
      for (const char* kernel : kKernelNames) kernels_.find(variant_name(kernel, spec), architecture);
    }
    return 0;
  });
}

size_t PagedAttention::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                        const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept {
  return guarded(node_.name, kImpossibleBytes, [&] {
    const std::vector<Tensor> tensors = largest(inputs, num_inputs);
    // Which of its architectures a build is for, TensorRT does not tell: all that have kernels must do.
    return static_cast<size_t>(
        workspace_bytes(kernels_, kernels_.architectures(), spec_of(node_, tensors), shapes_of(node_, tensors)));
  });
}

int32_t PagedAttention::enqueue(const nvinfer1::PluginTensorDesc* descriptions, const nvinfer1::PluginTensorDesc*,
                                const void* const* inputs, void* const* outputs, void* workspace,
                                cudaStream_t stream) noexcept {
  if (builds_) return 0;
  return guarded(node_.name, kFailed, [&] {
    launch(descriptions, inputs, outputs, workspace, stream);
    return 0;
  });
}

nvinfer1::IPluginV3* PagedAttention::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return guarded<PagedAttention*>(node_.name, nullptr, [&] {
    // TensorRT-RTX captures CUDA graphs when it likes, and kernels cannot be loaded meanwhile.
    if (!builds_) Launcher::shared().load_all(kernels_);
    return new PagedAttention(node_, kernels_, builds_);
  });
}

void PagedAttention::launch(const nvinfer1::PluginTensorDesc* descriptions, const void* const* inputs,
                            void* const* outputs, void* workspace, cudaStream_t stream) const {
  const auto address = [](const void* pointer) { return reinterpret_cast<uint64_t>(pointer); };
  std::vector<Tensor> tensors;
  Buffers buffers;
  for (size_t index = 0; index < node_.inputs.size(); ++index) {
    tensors.push_back({dtype_of(descriptions[index].type), dims_of(descriptions[index].dims)});
    buffers[node_.inputs[index]] = address(inputs[index]);
  }
  const std::vector<std::string> names = node_.outputs();
  for (size_t index = 0; index < names.size(); ++index) {
    const int32_t alias = node_.aliased_input(static_cast<int32_t>(index));
    if (alias >= 0 && inputs[alias] != outputs[index]) {
      node_.fail(names[index] + " is not where its input is; caches are updated in place only");
    }
    buffers[names[index]] = address(outputs[index]);
  }
  Launcher::shared().launch(kernels_, spec_of(node_, tensors), shapes_of(node_, tensors), buffers, address(workspace),
                            stream);
}

const nvinfer1::PluginFieldCollection* PagedAttention::getFieldsToSerialize() noexcept {
  return guarded<const nvinfer1::PluginFieldCollection*>(node_.name, nullptr, [&] {
    Values values = node_.values();
    values.emplace_back(kKernelsField, kernels_.sha256);
    serialized_ = std::make_unique<OwnedFields>(values);
    return serialized_->collection();
  });
}

std::vector<int32_t> PagedAttention::models_of_outputs() const {
  std::vector<int32_t> models = {node_.index_of("query")};
  for (int32_t output = 1; output < getNbOutputs(); ++output) models.push_back(node_.aliased_input(output));
  return models;
}

}  // namespace kvfold::tensorrt
