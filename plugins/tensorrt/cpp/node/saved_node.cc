#include "tensorrt/cpp/node/saved_node.h"

#include "cuda/cpp/text.h"

namespace kvfold {
namespace {

constexpr const char* kKernelsField = "kernels_sha256";
constexpr size_t kDigits = 12;  // enough to tell kernels apart

}  // namespace

Values saved_values(const Node& node, const std::string& kernels_sha256) {
  Values values = node.values();
  values.emplace_back(kKernelsField, kernels_sha256);
  return values;
}

Node read_saved_node(const std::string& name, const Values& values, const std::string& kernels_sha256) {
  std::string built = "unknown";
  Values attributes;
  for (const auto& [field, value] : values) {
    if (field != kKernelsField) {
      attributes.emplace_back(field, value);
    } else if (const auto* digits = std::get_if<std::string>(&value)) {
      built = *digits;
    }
  }
  if (built != kernels_sha256) {
    throw KernelError(text("attention node ", name, ": the plan was built with kernels ", built.substr(0, kDigits),
                           ", and these are ", kernels_sha256.substr(0, kDigits),
                           "; build the engine again, or the plugin library with the kernels of the plan's engine"));
  }
  return read_node(name, attributes);
}

}  // namespace kvfold
