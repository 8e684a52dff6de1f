#include "tensorrt/cpp/creator.h"

#include <algorithm>

#include "cuda/cpp/open_kernels.h"
#include "tensorrt/cpp/fields.h"
#include "tensorrt/cpp/log.h"

namespace kvfold::tensorrt {

using namespace cuda;

namespace {

// The kernels that a plan's node names, which is taken out of its values; those opened last for a node that is
// being built.
const KernelLibrary& take_kernels(Values& values, bool builds) {
  const auto is_kernels = [](const auto& value) { return value.first == kKernelsField; };
  const auto found = std::find_if(values.begin(), values.end(), is_kernels);
  if (found == values.end()) return builds ? latest_kernels() : kernels_of("unknown");
  const auto* sha256 = std::get_if<std::string>(&found->second);
  const std::string named = sha256 == nullptr ? describe(found->second) : *sha256;
  values.erase(found);
  return kernels_of(named);
}

}  // namespace

Creator::Creator() {
  for (const auto& attribute : attribute_types()) names_.emplace_back(attribute.first.c_str());
  declared_ = {static_cast<int32_t>(names_.size()), names_.data()};
}

nvinfer1::IPluginV3* Creator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase phase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(name, nullptr, [&] {
    const bool builds = phase == nvinfer1::TensorRTPhase::kBUILD;
    Values values = read_fields(*fields);
    const KernelLibrary& kernels = take_kernels(values, builds);
    return new PagedAttention(read_node(name, values), kernels, builds);
  });
}

}  // namespace kvfold::tensorrt
