// A node's attributes as TensorRT's PluginFields, both ways.
#pragma once

#include <list>
#include <variant>
#include <vector>

#include "cuda/cpp/node/attributes.h"
#include "tensorrt/cpp/plugin_abi.h"

namespace kvfold::tensorrt {

// Values in the order of the fields.
cuda::Values read_fields(const nvinfer1::PluginFieldCollection& fields);

// Fields that own what they point to: int32, float32, and text that ends with a zero byte.
class OwnedFields {
 public:
  explicit OwnedFields(const cuda::Values& values);
  const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }

 private:
  cuda::Values values_;
  std::list<std::variant<int32_t, float>> numbers_;  // fields point into it
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace kvfold::tensorrt
