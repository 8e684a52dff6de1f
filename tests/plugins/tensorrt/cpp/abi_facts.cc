// Prints what of TensorRT's binary interface `plugin_abi.h` declares: sizes, offsets, values of enumerations, and the
// places of virtual functions. Compiled with that header, and with TensorRT's own: both must print the same.

#include <cstddef>
#include <cstdio>
#include <cstring>

#ifdef KVFOLD_OWN
#include "tensorrt/cpp/plugin_abi.h"
#else
#include <NvInferRuntime.h>
#endif

namespace {

using namespace nvinfer1;

// Of a virtual function, its offset in the virtual table and one (Itanium C++ ABI, 2.3).
template <typename Function>
void print_place(const char* name, Function function) {
  static_assert(sizeof function == 2 * sizeof(void*), "another ABI of pointers to members");
  long parts[2];
  std::memcpy(parts, &function, sizeof parts);
  std::printf("%s %ld %ld\n", name, parts[0], parts[1]);
}

template <typename Object>
void print_interface(const char* name, const Object& object) {
  const InterfaceInfo info = object.getInterfaceInfo();
  std::printf("%s is %s %d.%d, language %d\n", name, info.kind, info.major, info.minor,
              static_cast<int>(object.getAPILanguage()));
}

#define SIZE(type) std::printf(#type " %zu %zu\n", sizeof(type), alignof(type))
#define MEMBER(type, member) std::printf(#type "::" #member " %zu\n", offsetof(type, member))
#define VALUE(value) std::printf(#value " %d\n", static_cast<int>(value))
#define PLACE(function) print_place(#function, &function)

void print_layouts() {
  SIZE(Dims);
  MEMBER(Dims, nbDims);
  MEMBER(Dims, d);
  SIZE(PluginTensorDesc);
  MEMBER(PluginTensorDesc, dims);
  MEMBER(PluginTensorDesc, type);
  MEMBER(PluginTensorDesc, format);
  MEMBER(PluginTensorDesc, scale);
  SIZE(DynamicPluginTensorDesc);
  MEMBER(DynamicPluginTensorDesc, desc);
  MEMBER(DynamicPluginTensorDesc, min);
  MEMBER(DynamicPluginTensorDesc, max);
  MEMBER(DynamicPluginTensorDesc, opt);
  SIZE(PluginField);
  MEMBER(PluginField, name);
  MEMBER(PluginField, data);
  MEMBER(PluginField, type);
  MEMBER(PluginField, length);
  SIZE(PluginFieldCollection);
  MEMBER(PluginFieldCollection, nbFields);
  MEMBER(PluginFieldCollection, fields);
  SIZE(DimsExprs);
  MEMBER(DimsExprs, nbDims);
  MEMBER(DimsExprs, d);
  SIZE(InterfaceInfo);
  SIZE(IDimensionExpr);
  SIZE(IExprBuilder);
}

void print_values() {
  VALUE(DataType::kFLOAT);
  VALUE(DataType::kHALF);
  VALUE(DataType::kINT8);
  VALUE(DataType::kINT32);
  VALUE(DataType::kBOOL);
  VALUE(DataType::kUINT8);
  VALUE(DataType::kFP8);
  VALUE(DataType::kBF16);
  VALUE(DataType::kINT64);
  VALUE(TensorFormat::kLINEAR);
  VALUE(PluginFieldType::kFLOAT32);
  VALUE(PluginFieldType::kFLOAT64);
  VALUE(PluginFieldType::kINT32);
  VALUE(PluginFieldType::kCHAR);
  VALUE(PluginFieldType::kUNKNOWN);
  VALUE(PluginFieldType::kINT64);
  VALUE(TensorRTPhase::kBUILD);
  VALUE(TensorRTPhase::kRUNTIME);
  VALUE(PluginCapabilityType::kCORE);
  VALUE(PluginCapabilityType::kBUILD);
  VALUE(PluginCapabilityType::kRUNTIME);
  VALUE(APILanguage::kCPP);
  VALUE(ILogger::Severity::kERROR);
}

void print_places() {
  PLACE(IPluginV3::getAPILanguage);
  PLACE(IPluginV3::getInterfaceInfo);
  PLACE(IPluginV3::getCapabilityInterface);
  PLACE(IPluginV3::clone);
  PLACE(IPluginV3OneCore::getPluginName);
  PLACE(IPluginV3OneCore::getPluginVersion);
  PLACE(IPluginV3OneCore::getPluginNamespace);
  PLACE(IPluginV3OneBuildV2::configurePlugin);
  PLACE(IPluginV3OneBuildV2::getOutputDataTypes);
  PLACE(IPluginV3OneBuildV2::getOutputShapes);
  PLACE(IPluginV3OneBuildV2::supportsFormatCombination);
  PLACE(IPluginV3OneBuildV2::getNbOutputs);
  PLACE(IPluginV3OneBuildV2::getWorkspaceSize);
  PLACE(IPluginV3OneBuildV2::getValidTactics);
  PLACE(IPluginV3OneBuildV2::getNbTactics);
  PLACE(IPluginV3OneBuildV2::getTimingCacheID);
  PLACE(IPluginV3OneBuildV2::getFormatCombinationLimit);
  PLACE(IPluginV3OneBuildV2::getMetadataString);
  PLACE(IPluginV3OneBuildV2::getAliasedInput);
  PLACE(IPluginV3OneRuntime::setTactic);
  PLACE(IPluginV3OneRuntime::onShapeChange);
  PLACE(IPluginV3OneRuntime::enqueue);
  PLACE(IPluginV3OneRuntime::attachToContext);
  PLACE(IPluginV3OneRuntime::getFieldsToSerialize);
  PLACE(IPluginCreatorV3One::createPlugin);
  PLACE(IPluginCreatorV3One::getFieldNames);
  PLACE(IPluginCreatorV3One::getPluginName);
  PLACE(IPluginCreatorV3One::getPluginVersion);
  PLACE(IPluginCreatorV3One::getPluginNamespace);
  PLACE(ILogger::log);
  PLACE(ILoggerFinder::findLogger);
  PLACE(apiv::VDimensionExpr::isConstant);
  PLACE(apiv::VDimensionExpr::getConstantValue);
  PLACE(apiv::VExprBuilder::constant);
}

// What the interfaces say of themselves, and the defaults that our plugin leaves as they are.
struct Creator final : IPluginCreatorV3One {
  IPluginV3* createPlugin(const char*, const PluginFieldCollection*, TensorRTPhase) noexcept override {
    return nullptr;
  }
  const PluginFieldCollection* getFieldNames() noexcept override { return nullptr; }
  const char* getPluginName() const noexcept override { return ""; }
  const char* getPluginVersion() const noexcept override { return ""; }
  const char* getPluginNamespace() const noexcept override { return ""; }
};

struct Plugin final : IPluginV3 {
  IPluginCapability* getCapabilityInterface(PluginCapabilityType) noexcept override { return nullptr; }
  IPluginV3* clone() noexcept override { return nullptr; }
};

struct Core final : IPluginV3OneCore {
  const char* getPluginName() const noexcept override { return ""; }
  const char* getPluginVersion() const noexcept override { return ""; }
  const char* getPluginNamespace() const noexcept override { return ""; }
};

struct Build final : IPluginV3OneBuildV2 {
  using Described = const DynamicPluginTensorDesc*;
  int32_t configurePlugin(Described, int32_t, Described, int32_t) noexcept override { return 0; }
  int32_t getOutputDataTypes(DataType*, int32_t, const DataType*, int32_t) const noexcept override { return 0; }
  int32_t getOutputShapes(const DimsExprs*, int32_t, const DimsExprs*, int32_t, DimsExprs*, int32_t,
                          IExprBuilder&) noexcept override {
    return 0;
  }
  bool supportsFormatCombination(int32_t, Described, int32_t, int32_t) noexcept override { return false; }
  int32_t getNbOutputs() const noexcept override { return 0; }
  size_t getWorkspaceSize(Described, int32_t, Described, int32_t) const noexcept override { return 0; }
  int32_t getAliasedInput(int32_t) noexcept override { return -1; }
};

struct Runtime final : IPluginV3OneRuntime {
  using Described = const PluginTensorDesc*;
  int32_t onShapeChange(Described, int32_t, Described, int32_t) noexcept override { return 0; }
  int32_t enqueue(Described, Described, const void* const*, void* const*, void*, cudaStream_t) noexcept override {
    return 0;
  }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return nullptr; }
  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return nullptr; }
};

}  // namespace

int main() {
  print_layouts();
  print_values();
  print_places();
  print_interface("creator", Creator());
  print_interface("plugin", Plugin());
  print_interface("core", Core());
  Build build;
  print_interface("build", build);
  std::printf("tactics %d %d, formats %d, cache %d, metadata %d\n", build.getNbTactics(),
              build.getValidTactics(nullptr, 0), build.getFormatCombinationLimit(), build.getTimingCacheID() == nullptr,
              build.getMetadataString() == nullptr);
  Runtime runtime;
  print_interface("runtime", runtime);
  std::printf("set tactic %d\n", runtime.setTactic(0));
}
