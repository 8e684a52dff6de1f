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

// A text that `read` gives; it is asked for the length first, which counts the terminating zero.
template <typename Read>
std::optional<std::string> read_text(const Read& read) {
  size_t size = 0;
  if (absent(read(nullptr, &size)) || size == 0) return std::nullopt;
  std::string value(size, '\0');
  check(read(&value[0], &size), "a query for a text");
  value.resize(size - 1);
  return value;
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
  if (status == nullptr) return;
  const std::string said = ort().GetErrorMessage(status);
  ort().ReleaseStatus(status);
  throw std::runtime_error(std::string("ONNX Runtime refused ") + what + ": " + said);
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

int64_t Attributes::integer(const char* name) const {
  const auto found = find_integer(name);
  if (!found) missing_attribute(name);
  return *found;
}

int64_t Attributes::integer(const char* name, int64_t fallback) const { return find_integer(name).value_or(fallback); }

float Attributes::real(const char* name) const {
  const auto found = find_real(name);
  if (!found) missing_attribute(name);
  return *found;
}

float Attributes::real(const char* name, float fallback) const { return find_real(name).value_or(fallback); }

std::string Attributes::text(const char* name, const std::string& fallback) const {
  return find_text(name).value_or(fallback);
}

std::optional<int64_t> Attributes::find_integer(const char* name) const {
  int64_t value = 0;
  if (absent(ort().KernelInfoGetAttribute_int64(info_, name, &value))) return std::nullopt;
  return value;
}

std::optional<float> Attributes::find_real(const char* name) const {
  float value = 0;
  if (absent(ort().KernelInfoGetAttribute_float(info_, name, &value))) return std::nullopt;
  return value;
}

std::optional<std::string> Attributes::find_text(const char* name) const {
  return read_text([&](char* out, size_t* size) { return ort().KernelInfoGetAttribute_string(info_, name, out, size); });
}

std::string Attributes::node_name() const {
  return read_text([&](char* out, size_t* size) { return ort().KernelInfo_GetNodeName(info_, out, size); }).value_or("");
}

std::vector<std::string> Attributes::input_names() const {
  size_t count = 0;
  check(ort().KernelInfo_GetInputCount(info_, &count), "KernelInfo_GetInputCount");
  std::vector<std::string> names(count);
  for (size_t index = 0; index < count; ++index) {
    const auto read = [&](char* out, size_t* size) { return ort().KernelInfo_GetInputName(info_, index, out, size); };
    names[index] = read_text(read).value_or("");
  }
  return names;
}

AnyTensor Context::any_input(size_t index) const {
  AnyTensor tensor;
  size_t count = 0;
  check(ort().KernelContext_GetInputCount(context_, &count), "KernelContext_GetInputCount");
  if (index >= count) return tensor;  // trailing optional inputs may be cut off
  const OrtValue* value = nullptr;
  check(ort().KernelContext_GetInput(context_, index, &value), "KernelContext_GetInput");
  if (value == nullptr) return tensor;

  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(ort().GetTensorTypeAndShape(value, &info), "GetTensorTypeAndShape");
  size_t rank = 0;
  OrtStatus* status = ort().GetTensorElementType(info, &tensor.type);
  if (status == nullptr) status = ort().GetDimensionsCount(info, &rank);
  tensor.shape.resize(rank);
  if (status == nullptr) status = ort().GetDimensions(info, tensor.shape.data(), rank);
  ort().ReleaseTensorTypeAndShapeInfo(info);
  check(status, "the shape query of an input");
  void* data = nullptr;
  check(ort().GetTensorMutableData(const_cast<OrtValue*>(value), &data), "GetTensorMutableData");
  tensor.data = data == nullptr ? g_empty : data;
  return tensor;
}

const void* Context::input_data(size_t index, const char* name, ONNXTensorElementDataType type,
                                Shape* shape) const {
  AnyTensor tensor = any_input(index);
  if (tensor.data == nullptr) return nullptr;
  if (tensor.type != type) {
    throw KernelFailure(std::string("input ") + name + " has element type " + std::to_string(tensor.type) +
                        ", expected " + std::to_string(type) + " (ONNX TensorProto.DataType)");
  }
  *shape = std::move(tensor.shape);
  return tensor.data;
}

void* Context::gpu_stream() const {
  void* stream = nullptr;
  check(ort().KernelContext_GetGPUComputeStream(context_, &stream), "KernelContext_GetGPUComputeStream");
  return stream;
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

OrtStatus* register_ops(OrtSessionOptions* options, const OrtApiBase* base,
                        const std::vector<const OrtCustomOp*>& ops) noexcept {
  const OrtApi* api = base->GetApi(kOrtApiVersion);
  if (api == nullptr) {
    // CreateStatus is position 0 of every version of the table.
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "kvfold's kernels need onnxruntime 1.31 or newer");
  }
  set_ort(api);
  OrtCustomOpDomain* domain = nullptr;
  if (OrtStatus* status = api->CreateCustomOpDomain("kvfold", &domain)) return status;
  for (const OrtCustomOp* op : ops) {
    if (OrtStatus* status = api->CustomOpDomain_Add(domain, op)) return status;
  }
  return api->AddCustomOpDomain(options, domain);
}

}  // namespace kvfold
