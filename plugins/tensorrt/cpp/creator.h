// The creator that TensorRT's registry holds.
#pragma once

#include <vector>

#include "tensorrt/cpp/plugin.h"
#include "tensorrt/cpp/plugin_abi.h"

namespace kvfold::tensorrt {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator();

  const char* getPluginName() const noexcept override { return kPluginName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &declared_; }
  // The plugin of the node `name`; null, with an error in the log, where its attributes are not the contract's or
  // its kernels are not open.
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;

 private:
  std::vector<nvinfer1::PluginField> names_;
  nvinfer1::PluginFieldCollection declared_;  // TensorRT's parser hands on no other attribute of a node
};

}  // namespace kvfold::tensorrt
