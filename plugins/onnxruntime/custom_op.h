// A thin C++ layer over the C ABI: what an op implementation needs and no more.
//
// An op is a class with a constructor from Attributes, `void compute(Context&) const`, and
// `static const OpDeclaration& declaration()`. Errors are thrown as KernelFailure; they reach the
// caller as an OrtStatus (a Python exception), never as a C++ exception across the C boundary.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "onnxruntime/ort_c_abi.h"

namespace kvfold {

// An input or attribute breaks the op's contract; the message says which, and its value.
class KernelFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Set once by RegisterCustomOps, before any kernel exists.
const OrtApi& ort();
void set_ort(const OrtApi* api);

// Throws what an ONNX Runtime call reported; `what` names the call.
void check(OrtStatus* status, const char* what);

using Shape = std::vector<int64_t>;
std::string to_string(const Shape& shape);

template <typename T>
struct ElementType;
template <>
struct ElementType<float> {
  static constexpr ONNXTensorElementDataType value = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
};
template <>
struct ElementType<int8_t> {
  static constexpr ONNXTensorElementDataType value = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
};
template <>
struct ElementType<int64_t> {
  static constexpr ONNXTensorElementDataType value = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
};
template <>
struct ElementType<int32_t> {
  static constexpr ONNXTensorElementDataType value = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
};

template <>
struct ElementType<uint8_t> {
  static constexpr ONNXTensorElementDataType value = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
};
// The bits of a float16.
struct Float16 {
  uint16_t bits;
};
template <>
struct ElementType<Float16> {
  static constexpr ONNXTensorElementDataType value = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
};

// One tensor of a running kernel; `data` is null where an optional one is absent.
template <typename T>
struct Tensor {
  T* data = nullptr;
  Shape shape;

  bool present() const { return data != nullptr; }
  int64_t size() const {
    int64_t product = 1;
    for (int64_t extent : shape) product *= extent;
    return product;
  }
};

// One input as it is, whatever its type; `data` is null where an optional one is absent.
struct AnyTensor {
  const void* data = nullptr;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Shape shape;
};

// A node: its attributes, where a missing one takes the default, or fails by name where there is none; its name,
// and the names of its inputs.
class Attributes {
 public:
  explicit Attributes(const OrtKernelInfo* info) : info_(info) {}
  std::string node_name() const;
  // In the schema's order, without those that are cut off at the end; an absent one is empty.
  std::vector<std::string> input_names() const;
  std::optional<int64_t> find_integer(const char* name) const;
  std::optional<float> find_real(const char* name) const;
  std::optional<std::string> find_text(const char* name) const;
  int64_t integer(const char* name) const;
  int64_t integer(const char* name, int64_t fallback) const;
  float real(const char* name) const;
  float real(const char* name, float fallback) const;
  std::string text(const char* name, const std::string& fallback) const;

 private:
  const OrtKernelInfo* info_;
};

// One call of a kernel: its inputs, outputs and where it computes: ONNX Runtime's own thread pool, or its stream.
class Context {
 public:
  explicit Context(OrtKernelContext* context) : context_(context) {}

  // Absent optional inputs come back with `data` null. An empty tensor that is present has
  // non-null data, so that both can be told apart.
  template <typename T>
  Tensor<const T> input(size_t index, const char* name) const {
    Tensor<const T> tensor;
    tensor.data = static_cast<const T*>(input_data(index, name, ElementType<T>::value, &tensor.shape));
    return tensor;
  }

  AnyTensor any_input(size_t index) const;

  // Allocates output `index`; null where the node does not name it.
  template <typename T>
  T* output(size_t index, const Shape& shape) const {
    return static_cast<T*>(output_data(index, shape));
  }

  // Runs body(i) for i in [0, total) on ONNX Runtime's pool, one index at a time, in any order.
  // An exception thrown by `body` is rethrown here.
  template <typename Body>
  void parallel_for(int64_t total, const Body& body) const {
    if (total == 1) {
      body(int64_t{0});
      return;
    }
    if (total > 0) run_parallel(total, &invoke<Body>, &body);
  }

  // The CUDA stream that the kernel is to use; null on a CPU.
  void* gpu_stream() const;

 private:
  template <typename Body>
  static void invoke(const void* body, int64_t index) {
    (*static_cast<const Body*>(body))(index);
  }
  const void* input_data(size_t index, const char* name, ONNXTensorElementDataType type, Shape* shape) const;
  void* output_data(size_t index, const Shape& shape) const;
  void run_parallel(int64_t total, void (*body)(const void*, int64_t), const void* user) const;

  OrtKernelContext* context_;
};

struct Port {
  ONNXTensorElementDataType type;
  bool optional = false;
};

// What an op declares to ONNX Runtime. `aliases` are (input, output) pairs that share one buffer; `provider` is the
// execution provider that runs it, null for the CPU's.
struct OpDeclaration {
  const char* name;
  std::vector<Port> inputs;
  std::vector<Port> outputs;
  std::vector<std::pair<int, int>> aliases;
  const char* provider = nullptr;
};

// Makes ops known to the sessions of `options`, in the domain "kvfold".
OrtStatus* register_ops(OrtSessionOptions* options, const OrtApiBase* base,
                        const std::vector<const OrtCustomOp*>& ops) noexcept;

OrtStatus* to_status(OrtErrorCode code, const char* message) noexcept;

// Runs `body`; any exception becomes a status.
template <typename Body>
OrtStatus* guarded(const char* op, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const KernelFailure& failure) {
    return to_status(ORT_INVALID_ARGUMENT, (std::string(op) + ": " + failure.what()).c_str());
  } catch (const std::exception& failure) {
    return to_status(ORT_FAIL, (std::string(op) + ": " + failure.what()).c_str());
  }
}

// The C table of op class `Op`; lives as long as the library.
template <typename Op>
const OrtCustomOp* custom_op() {
  static const OrtCustomOp table = [] {
    OrtCustomOp op = {};
    op.version = kOrtApiVersion;
    op.GetName = [](const OrtCustomOp*) { return Op::declaration().name; };
    op.GetExecutionProviderType = [](const OrtCustomOp*) { return Op::declaration().provider; };
    op.GetInputTypeCount = [](const OrtCustomOp*) { return Op::declaration().inputs.size(); };
    op.GetInputType = [](const OrtCustomOp*, size_t i) { return Op::declaration().inputs[i].type; };
    op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) {
      return Op::declaration().inputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
    };
    op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    op.GetOutputTypeCount = [](const OrtCustomOp*) { return Op::declaration().outputs.size(); };
    op.GetOutputType = [](const OrtCustomOp*, size_t i) { return Op::declaration().outputs[i].type; };
    op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) {
      return Op::declaration().outputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
    };
    op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    op.GetEndVersion = [](const OrtCustomOp*) { return 0x7fffffff; };
    op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      return guarded(Op::declaration().name, [&] { *kernel = new Op(Attributes(info)); });
    };
    op.KernelComputeV2 = [](void* kernel, OrtKernelContext* raw) {
      return guarded(Op::declaration().name, [&] {
        Context context(raw);
        static_cast<const Op*>(kernel)->compute(context);
      });
    };
    op.KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
    op.GetAliasMap = [](int** inputs, int** outputs) -> size_t {
      const auto& aliases = Op::declaration().aliases;
      *inputs = new int[aliases.size()];
      *outputs = new int[aliases.size()];
      for (size_t i = 0; i < aliases.size(); ++i) {
        (*inputs)[i] = aliases[i].first;
        (*outputs)[i] = aliases[i].second;
      }
      return aliases.size();
    };
    op.ReleaseAliasMap = [](int* inputs, int* outputs) {
      delete[] inputs;
      delete[] outputs;
    };
    return op;
  }();
  return &table;
}

}  // namespace kvfold
