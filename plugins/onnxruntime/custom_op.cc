#include "onnxruntime/custom_op.h"

#include <mutex>

namespace kvfold {
namespace {

const OrtApi* g_api = nullptr;

// Releases a status that only said "no such attribute".
bool absent(OrtStatus* status) {
  if (status == nullptr) return false;
  ort().ReleaseStatus(status);
  return true;
}

[[noreturn]] void missing_attribute(const char* name) {
  throw KernelFailure(std::string("attribute ") + name + " is missing or has another type");
}

// ONNX Runtime may hand out null for the data of an empty tensor; this stands in for it.
alignas(64) char g_empty[64];

}  // namespace

const OrtApi& ort() { return *g_api; }

void set_ort(const OrtApi* api) { g_api = api; }

OrtStatus* to_status(OrtErrorCode code, const char* message) noexcept {
  return g_api->CreateStatus(code, message);
}

void check(OrtStatus* status, const char* what) {
  if (absent(status)) throw std::runtime_error(std::string("ONNX Runtime refused ") + what);
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

int64_t Attributes::integer(const char* name) const {
  int64_t value = 0;
  if (absent(ort().KernelInfoGetAttribute_int64(info_, name, &value))) missing_attribute(name);
  return value;
}

int64_t Attributes::integer(const char* name, int64_t fallback) const {
  int64_t value = 0;
  return absent(ort().KernelInfoGetAttribute_int64(info_, name, &value)) ? fallback : value;
}

float Attributes::real(const char* name) const {
  float value = 0;
  if (absent(ort().KernelInfoGetAttribute_float(info_, name, &value))) missing_attribute(name);
  return value;
}

float Attributes::real(const char* name, float fallback) const {
  float value = 0;
  return absent(ort().KernelInfoGetAttribute_float(info_, name, &value)) ? fallback : value;
}

std::string Attributes::text(const char* name, const std::string& fallback) const {
  size_t size = 0;  // counts the terminating zero
  if (absent(ort().KernelInfoGetAttribute_string(info_, name, nullptr, &size)) || size == 0) return fallback;
  std::string value(size, '\0');
  check(ort().KernelInfoGetAttribute_string(info_, name, &value[0], &size), "KernelInfoGetAttribute_string");
  value.resize(size - 1);
  return value;
}

const void* Context::input_data(size_t index, const char* name, ONNXTensorElementDataType type,
                                Shape* shape) const {
  size_t count = 0;
  check(ort().KernelContext_GetInputCount(context_, &count), "KernelContext_GetInputCount");
  if (index >= count) return nullptr;  // trailing optional inputs may be cut off
  const OrtValue* value = nullptr;
  check(ort().KernelContext_GetInput(context_, index, &value), "KernelContext_GetInput");
  if (value == nullptr) return nullptr;

  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(ort().GetTensorTypeAndShape(value, &info), "GetTensorTypeAndShape");
  ONNXTensorElementDataType actual = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t rank = 0;
  OrtStatus* status = ort().GetTensorElementType(info, &actual);
  if (status == nullptr) status = ort().GetDimensionsCount(info, &rank);
  shape->resize(rank);
  if (status == nullptr) status = ort().GetDimensions(info, shape->data(), rank);
  ort().ReleaseTensorTypeAndShapeInfo(info);
  check(status, "the shape query of an input");
  if (actual != type) {
    throw KernelFailure(std::string("input ") + name + " has element type " + std::to_string(actual) +
                        ", expected " + std::to_string(type) + " (ONNX TensorProto.DataType)");
  }
  void* data = nullptr;
  check(ort().GetTensorMutableData(const_cast<OrtValue*>(value), &data), "GetTensorMutableData");
  return data == nullptr ? g_empty : data;
}

void* Context::output_data(size_t index, const Shape& shape) const {
  size_t count = 0;
  check(ort().KernelContext_GetOutputCount(context_, &count), "KernelContext_GetOutputCount");
  if (index >= count) return nullptr;
  OrtValue* value = nullptr;
  check(ort().KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value),
        "KernelContext_GetOutput");
  if (value == nullptr) return nullptr;
  void* data = nullptr;
  check(ort().GetTensorMutableData(value, &data), "GetTensorMutableData");
  return data;
}

void Context::run_parallel(int64_t total, void (*body)(const void*, int64_t), const void* user) const {
  struct Call {
    void (*body)(const void*, int64_t);
    const void* user;
    std::mutex mutex;
    std::string failure;  // std::exception_ptr would ask for a newer libstdc++ than manylinux_2_28 has
  } call{body, user, {}, {}};
  auto run = [](void* raw, size_t index) {
    auto* self = static_cast<Call*>(raw);
    try {
      self->body(self->user, static_cast<int64_t>(index));
    } catch (const std::exception& failure) {
      std::lock_guard<std::mutex> lock(self->mutex);
      self->failure = failure.what();
    }
  };
  // As many batches as indices: ONNX Runtime then hands out one index at a time to idle threads.
  const auto count = static_cast<size_t>(total);
  check(ort().KernelContext_ParallelFor(context_, run, count, count, &call), "KernelContext_ParallelFor");
  if (!call.failure.empty()) throw std::runtime_error(call.failure);
}

}  // namespace kvfold
