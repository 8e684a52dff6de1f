// Does with the plugin library what TensorRT does at run time, and prints what it sees:
// `cpp_host LIBRARY < REQUEST` makes a plugin from the request's attributes, reads the fields that a plan would
// hold, makes the plugin of that plan, attaches it to a context and enqueues the request's call twice.

#include <dlfcn.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <variant>

#include <NvInferRuntime.h>

#include "tests/plugins/cuda/cpp/cpp_request.h"

namespace {

using namespace nvinfer1;

class Logger : public ILogger {
  void log(Severity severity, const char* message) noexcept override {
    std::printf("logged %d %s\n", static_cast<int>(severity), message);
  }
};

class Finder : public ILoggerFinder {
  ILogger* findLogger() override { return &logger_; }
  Logger logger_;
};

DataType type_of(const std::string& dtype) {
  if (dtype == "float16") return DataType::kHALF;
  if (dtype == "bfloat16") return DataType::kBF16;
  if (dtype == "int8") return DataType::kINT8;
  return dtype == "int32" ? DataType::kINT32 : DataType::kFLOAT;
}

// Fields as TensorRT's parser makes them; they point into `numbers` and `values`.
std::vector<PluginField> parsed_fields(const kvfold::cuda::Values& values, std::vector<std::variant<int32_t, float>>& numbers) {
  numbers.reserve(values.size());
  std::vector<PluginField> fields;
  for (const auto& [name, value] : values) {
    if (const auto* text = std::get_if<std::string>(&value)) {
      fields.emplace_back(name.c_str(), text->c_str(), PluginFieldType::kCHAR, static_cast<int32_t>(text->size()));
    } else if (const auto* real = std::get_if<double>(&value)) {
      numbers.emplace_back(static_cast<float>(*real));
      fields.emplace_back(name.c_str(), &std::get<float>(numbers.back()), PluginFieldType::kFLOAT32, 1);
    } else {
      numbers.emplace_back(static_cast<int32_t>(std::get<int64_t>(value)));
      fields.emplace_back(name.c_str(), &std::get<int32_t>(numbers.back()), PluginFieldType::kINT32, 1);
    }
  }
  return fields;
}

void print_fields(const PluginFieldCollection& fields) {
  for (int32_t index = 0; index < fields.nbFields; ++index) {
    const PluginField& field = fields.fields[index];
    const int32_t bytes = field.length * (field.type == PluginFieldType::kCHAR ? 1 : 4);
    std::printf("field %s %d %d ", field.name, static_cast<int>(field.type), field.length);
    for (int32_t at = 0; at < bytes; ++at) std::printf("%02x", static_cast<const unsigned char*>(field.data)[at]);
    std::printf("\n");
  }
}

// The fields of a plan that was built with the request's kernels; they point into `kernels`.
std::vector<PluginField> plan_fields(const PluginFieldCollection& serialized, const std::string& kernels) {
  std::vector<PluginField> fields;
  for (int32_t index = 0; index < serialized.nbFields; ++index) {
    PluginField field = serialized.fields[index];
    if (!kernels.empty() && field.name == std::string("kernels_sha256")) {
      if (kernels == "none") continue;
      field.data = kernels.c_str();
      field.length = static_cast<int32_t>(kernels.size() + 1);
    }
    fields.push_back(field);
  }
  return fields;
}

template <typename Capability>
Capability* capability(IPluginV3& plugin, PluginCapabilityType type) {
  return static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

int enqueue(const Request& request, IPluginV3OneRuntime& plugin) {
  std::vector<PluginTensorDesc> descriptions;
  for (const kvfold::cuda::Tensor& tensor : request.tensors) {
    PluginTensorDesc description = {{}, type_of(tensor.dtype), TensorFormat::kLINEAR, 1.0f};
    description.dims.nbDims = static_cast<int32_t>(tensor.dims.size());
    std::copy(tensor.dims.begin(), tensor.dims.end(), description.dims.d);
    descriptions.push_back(description);
  }
  std::vector<void*> addresses;
  for (const uint64_t address : request.addresses) addresses.push_back(reinterpret_cast<void*>(address));
  const size_t inputs = descriptions.size();
  return plugin.enqueue(descriptions.data(), nullptr, addresses.data(), addresses.data() + inputs,
                        reinterpret_cast<void*>(request.workspace), reinterpret_cast<cudaStream_t>(request.stream));
}

}  // namespace

int main(int, char** arguments) {
  const Request request = read_request({std::istreambuf_iterator<char>(std::cin), {}});
  void* const library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::printf("%s\n", dlerror());
    return 1;
  }
  Finder finder;
  reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
  using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
  int32_t count = 0;
  auto* const creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"))(count);
  auto& creator = static_cast<IPluginCreatorV3One&>(**creators);
  std::printf("creators %d %s %s %s\n", count, creator.getPluginName(), creator.getPluginVersion(),
              creator.getPluginNamespace());

  std::vector<std::variant<int32_t, float>> numbers;
  const std::vector<PluginField> fields = parsed_fields(request.values, numbers);
  const PluginFieldCollection parsed = {static_cast<int32_t>(fields.size()), fields.data()};
  IPluginV3* const built = creator.createPlugin("layers.3", &parsed, TensorRTPhase::kBUILD);
  if (built == nullptr) return 0;
  auto& building = *capability<IPluginV3OneRuntime>(*built, PluginCapabilityType::kRUNTIME);
  std::printf("enqueue of a build: %d\n", enqueue(request, building));
  const PluginFieldCollection& serialized = *building.getFieldsToSerialize();
  print_fields(serialized);

  const std::vector<PluginField> saved = plan_fields(serialized, request.kernels);
  const PluginFieldCollection plan = {static_cast<int32_t>(saved.size()), saved.data()};
  IPluginV3* const loaded = creator.createPlugin("layers.3", &plan, TensorRTPhase::kRUNTIME);
  if (loaded == nullptr) return 0;
  IPluginV3* const attached =
      capability<IPluginV3OneRuntime>(*loaded, PluginCapabilityType::kRUNTIME)->attachToContext(nullptr);
  for (IPluginV3* const plugin : {built, loaded}) delete plugin;
  if (attached == nullptr) return 0;
  for (int round = 0; round < 2; ++round) {
    std::printf("enqueue: %d\n",
                enqueue(request, *capability<IPluginV3OneRuntime>(*attached, PluginCapabilityType::kRUNTIME)));
  }
  delete attached;
}
