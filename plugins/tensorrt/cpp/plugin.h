// PagedAttention as an IPluginV3.
#pragma once

#include <memory>
#include <vector>

#include "cuda/cpp/kernel_library.h"
#include "cuda/cpp/node/attributes.h"
#include "tensorrt/cpp/fields.h"
#include "tensorrt/cpp/plugin_abi.h"

namespace kvfold::tensorrt {

// As plugins/tensorrt/node_form.py has them.
constexpr const char* kPluginName = "PagedAttention";
constexpr const char* kPluginVersion = "1";
constexpr const char* kPluginNamespace = "kvfold";
// Of a plan's node: the kernels that it was built with, and that its scratch memory is sized for.
constexpr const char* kKernelsField = "kernels_sha256";

// One class with all capabilities.
class PagedAttention final : public nvinfer1::IPluginV3,
                             public nvinfer1::IPluginV3OneCore,
                             public nvinfer1::IPluginV3OneBuildV2,
                             public nvinfer1::IPluginV3OneRuntime {
 public:
  // `builds`: made for a build. TensorRT may time plugins over whatever bytes its buffers hold, and page ids
  // among those lead anywhere, so such an instance launches nothing.
  // `kernels` live to the end of the process.
  PagedAttention(cuda::Node node, const cuda::KernelLibrary& kernels, bool builds)
      : node_(std::move(node)), kernels_(kernels), builds_(builds) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return kPluginName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  int32_t getNbOutputs() const noexcept override { return node_.writes() ? 3 : 1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t num_outputs, const nvinfer1::DataType* inputs,
                             int32_t num_inputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t,
                                 int32_t) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept override;
  int32_t getAliasedInput(int32_t output) noexcept override { return node_.aliased_input(output); }

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc*, int32_t, const nvinfer1::PluginTensorDesc*,
                        int32_t) noexcept override {
    return 0;  // nothing to prepare: a call says its shapes
  }
  int32_t enqueue(const nvinfer1::PluginTensorDesc* descriptions, const nvinfer1::PluginTensorDesc*,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  // Index of the input that each output has its type from: the query, then the caches.
  std::vector<int32_t> models_of_outputs() const;
  void launch(const nvinfer1::PluginTensorDesc* descriptions, const void* const* inputs, void* const* outputs,
              void* workspace, cudaStream_t stream) const;

  const cuda::Node node_;
  const cuda::KernelLibrary& kernels_;
  const bool builds_;
  std::unique_ptr<OwnedFields> serialized_;  // TensorRT reads it after the call that made it
};

}  // namespace kvfold::tensorrt
