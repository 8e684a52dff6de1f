// The part of TensorRT's binary interface that a plugin is called through, declared by hand because no wheel that
// installs has the headers. TensorRT and TensorRT-RTX share it. Names, order of virtual functions and layouts are
// NVIDIA's; tests hold each of them against the headers of TensorRT 10.14, and TensorRT-RTX 1.7 calls through it.
// What no plugin of ours uses is left out, unless something after it would move.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace nvinfer1 {

enum class DataType : int32_t {
  kFLOAT = 0,
  kHALF = 1,
  kINT8 = 2,
  kINT32 = 3,
  kBOOL = 4,
  kUINT8 = 5,
  kFP8 = 6,
  kBF16 = 7,
  kINT64 = 8,
};
enum class TensorFormat : int32_t { kLINEAR = 0 };
enum class PluginFieldType : int32_t {
  kFLOAT32 = 1,
  kFLOAT64 = 2,
  kINT32 = 5,
  kCHAR = 6,
  kUNKNOWN = 8,
  kINT64 = 10,
};
enum class TensorRTPhase : int32_t { kBUILD = 0, kRUNTIME = 1 };
enum class PluginCapabilityType : int32_t { kCORE = 0, kBUILD = 1, kRUNTIME = 2 };
enum class APILanguage : int32_t { kCPP = 0 };

struct Dims64 {
  int32_t nbDims;
  int64_t d[8];
};
using Dims = Dims64;

struct PluginTensorDesc {
  Dims dims;
  DataType type;
  TensorFormat format;
  float scale;
};

struct DynamicPluginTensorDesc {
  PluginTensorDesc desc;
  Dims min, max, opt;
};

struct PluginField {
  const char* name;
  const void* data;
  PluginFieldType type;
  int32_t length;

  explicit PluginField(const char* its_name = nullptr, const void* its_data = nullptr,
                       PluginFieldType its_type = PluginFieldType::kUNKNOWN, int32_t its_length = 0) noexcept
      : name(its_name), data(its_data), type(its_type), length(its_length) {}
};

struct PluginFieldCollection {
  int32_t nbFields;
  const PluginField* fields;
};

// Objects of TensorRT's own whose first member after the virtual table is what does the work.
class IDimensionExpr;

namespace apiv {

struct VDimensionExpr {
  virtual ~VDimensionExpr() noexcept = default;
  virtual bool isConstant() const = 0;
  virtual int64_t getConstantValue() const = 0;
};

struct VExprBuilder {
  virtual ~VExprBuilder() noexcept = default;
  virtual const IDimensionExpr* constant(int64_t value) = 0;
};

}  // namespace apiv

class IDimensionExpr {
 public:
  bool isConstant() const noexcept { return mImpl->isConstant(); }
  int64_t getConstantValue() const noexcept { return mImpl->getConstantValue(); }

 protected:
  virtual ~IDimensionExpr() noexcept = default;
  apiv::VDimensionExpr* mImpl;
};

class IExprBuilder {
 public:
  const IDimensionExpr* constant(int64_t value) noexcept { return mImpl->constant(value); }

 protected:
  virtual ~IExprBuilder() noexcept = default;
  apiv::VExprBuilder* mImpl;
};

struct DimsExprs {
  int32_t nbDims;
  const IDimensionExpr* d[8];
};

class ILogger {
 public:
  enum class Severity : int32_t { kERROR = 1 };
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~ILogger() = default;
};

class ILoggerFinder {
 public:
  virtual ILogger* findLogger() = 0;

 protected:
  virtual ~ILoggerFinder() = default;
};

struct InterfaceInfo {
  const char* kind;
  int32_t major;
  int32_t minor;
};

class IVersionedInterface {
 public:
  virtual APILanguage getAPILanguage() const noexcept { return APILanguage::kCPP; }
  virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
  virtual ~IVersionedInterface() noexcept = default;
};

class IPluginResourceContext;

namespace v_1_0 {

class IPluginCapability : public IVersionedInterface {};
class IPluginCreatorInterface : public IVersionedInterface {};

class IPluginV3 : public IVersionedInterface {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN", 1, 0}; }
  virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept = 0;
  virtual IPluginV3* clone() noexcept = 0;
};

class IPluginV3OneCore : public IPluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_CORE", 1, 0}; }
  virtual const char* getPluginName() const noexcept = 0;
  virtual const char* getPluginVersion() const noexcept = 0;
  virtual const char* getPluginNamespace() const noexcept = 0;
};

class IPluginV3OneBuild : public IPluginCapability {
 public:
  virtual int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                  const DynamicPluginTensorDesc* outputs, int32_t num_outputs) noexcept = 0;
  virtual int32_t getOutputDataTypes(DataType* outputs, int32_t num_outputs, const DataType* inputs,
                                     int32_t num_inputs) const noexcept = 0;
  virtual int32_t getOutputShapes(const DimsExprs* inputs, int32_t num_inputs, const DimsExprs* shape_inputs,
                                  int32_t num_shape_inputs, DimsExprs* outputs, int32_t num_outputs,
                                  IExprBuilder& builder) noexcept = 0;
  virtual bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t num_inputs,
                                         int32_t num_outputs) noexcept = 0;
  virtual int32_t getNbOutputs() const noexcept = 0;
  virtual size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                  const DynamicPluginTensorDesc* outputs, int32_t num_outputs) const noexcept = 0;
  virtual int32_t getValidTactics(int32_t*, int32_t) noexcept { return 0; }
  virtual int32_t getNbTactics() noexcept { return 0; }
  virtual const char* getTimingCacheID() noexcept { return nullptr; }
  virtual int32_t getFormatCombinationLimit() noexcept { return 100; }  // TensorRT's own default
  virtual const char* getMetadataString() noexcept { return nullptr; }
};

class IPluginV3OneRuntime : public IPluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_RUNTIME", 1, 0}; }
  virtual int32_t setTactic(int32_t) noexcept { return 0; }
  virtual int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t num_inputs, const PluginTensorDesc* outputs,
                                int32_t num_outputs) noexcept = 0;
  virtual int32_t enqueue(const PluginTensorDesc* input_descriptions, const PluginTensorDesc* output_descriptions,
                          const void* const* inputs, void* const* outputs, void* workspace,
                          cudaStream_t stream) noexcept = 0;
  virtual IPluginV3* attachToContext(IPluginResourceContext* context) noexcept = 0;
  virtual const PluginFieldCollection* getFieldsToSerialize() noexcept = 0;
};

class IPluginCreatorV3One : public IPluginCreatorInterface {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN CREATOR_V3ONE", 1, 0}; }
  virtual IPluginV3* createPlugin(const char* name, const PluginFieldCollection* fields,
                                  TensorRTPhase phase) noexcept = 0;
  virtual const PluginFieldCollection* getFieldNames() noexcept = 0;
  virtual const char* getPluginName() const noexcept = 0;
  virtual const char* getPluginVersion() const noexcept = 0;
  virtual const char* getPluginNamespace() const noexcept = 0;
};

}  // namespace v_1_0

namespace v_2_0 {

class IPluginV3OneBuild : public v_1_0::IPluginV3OneBuild {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_BUILD", 2, 0}; }
  virtual int32_t getAliasedInput(int32_t output) noexcept = 0;
};

}  // namespace v_2_0

using v_1_0::IPluginCapability;
using v_1_0::IPluginCreatorInterface;
using v_1_0::IPluginCreatorV3One;
using v_1_0::IPluginV3;
using v_1_0::IPluginV3OneCore;
using v_1_0::IPluginV3OneRuntime;
using IPluginV3OneBuildV2 = v_2_0::IPluginV3OneBuild;

}  // namespace nvinfer1
