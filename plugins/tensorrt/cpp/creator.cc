#include "tensorrt/cpp/creator.h"

#include "tensorrt/cpp/node/fields.h"
#include "cuda/cpp/kernel_library.h"
#include "tensorrt/cpp/log.h"
#include "tensorrt/cpp/node/saved_node.h"

namespace kvfold {

Creator::Creator() {
  for (const auto& attribute : attribute_types()) names_.emplace_back(attribute.first.c_str());
  declared_ = {static_cast<int32_t>(names_.size()), names_.data()};
}

nvinfer1::IPluginV3* Creator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase phase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(name, nullptr, [&] {
    const bool builds = phase == nvinfer1::TensorRTPhase::kBUILD;
    const Values values = read_fields(*fields);
    Node node = builds ? read_node(name, values) : read_saved_node(name, values, kEmbeddedKernels.sha256);
    return new PagedAttention(std::move(node), builds);
  });
}

}  // namespace kvfold
