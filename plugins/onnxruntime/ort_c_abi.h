// The part of ONNX Runtime's C ABI that kvfold uses, declared by hand because the pip wheel ships
// no headers. The tables are versioned and only ever grow at their end, so positions never move;
// RegisterCustomOps checks at load that ONNX Runtime answers for kOrtApiVersion. Positions were
// read from and run against 1.31 and 1.32; the static_asserts below pin them.
#pragma once

#include <cstddef>
#include <cstdint>

constexpr uint32_t kOrtApiVersion = 31;

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;
struct OrtCustomOp;

enum OrtErrorCode : int { ORT_OK = 0, ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };

enum ONNXTensorElementDataType : int {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 = 3,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 = 6,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16,
};

enum OrtCustomOpInputOutputCharacteristic : int { INPUT_OUTPUT_REQUIRED = 0, INPUT_OUTPUT_OPTIONAL = 1 };

enum OrtMemType : int { OrtMemTypeDefault = 0 };

struct OrtApi {
  OrtStatus* (*CreateStatus)(OrtErrorCode, const char* message);  // 0
  void* unused_1[1];
  const char* (*GetErrorMessage)(const OrtStatus*);  // 2; lasts as long as the status
  void* unused_3[23];
  OrtStatus* (*CreateCustomOpDomain)(const char* domain, OrtCustomOpDomain** out);                 // 26
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain*, const OrtCustomOp*);                        // 27
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions*, OrtCustomOpDomain*);                         // 28
  void* unused_29[22];
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void** out);  // 51
  void* unused_52[8];
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType*);  // 60
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo*, size_t* out);                   // 61
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo*, int64_t* out, size_t count);         // 62
  void* unused_63[2];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorTypeAndShapeInfo** out);  // 65
  void* unused_66[19];
  OrtStatus* (*KernelInfoGetAttribute_float)(const OrtKernelInfo*, const char*, float* out);      // 85
  OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo*, const char*, int64_t* out);    // 86
  OrtStatus* (*KernelInfoGetAttribute_string)(const OrtKernelInfo*, const char*, char* out, size_t* size);  // 87
  OrtStatus* (*KernelContext_GetInputCount)(const OrtKernelContext*, size_t* out);                // 88
  OrtStatus* (*KernelContext_GetOutputCount)(const OrtKernelContext*, size_t* out);               // 89
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext*, size_t, const OrtValue** out);    // 90
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext*, size_t, const int64_t* shape, size_t rank,
                                        OrtValue** out);  // 91
  void* unused_92[1];
  void (*ReleaseStatus)(OrtStatus*);  // 93
  void* unused_94[5];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo*);  // 99
  void* unused_100[93];
  OrtStatus* (*KernelContext_GetGPUComputeStream)(const OrtKernelContext*, void** out);  // 193; null on a CPU
  void* unused_194[36];
  OrtStatus* (*KernelInfo_GetInputCount)(const OrtKernelInfo*, size_t* out);  // 230
  void* unused_231[1];
  // Both count the terminating zero in `size`; an absent input has an empty name.
  OrtStatus* (*KernelInfo_GetInputName)(const OrtKernelInfo*, size_t index, char* out, size_t* size);  // 232
  void* unused_233[11];
  OrtStatus* (*KernelInfo_GetNodeName)(const OrtKernelInfo*, char* out, size_t* size);  // 244
  void* unused_245[29];
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext*, void (*body)(void* user, size_t index),
                                          size_t total, size_t batches, void* user);  // 274
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null if this ONNX Runtime is older than `version`
  const char* (*GetVersionString)();
};

struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  ONNXTensorElementDataType (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  ONNXTensorElementDataType (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  OrtCustomOpInputOutputCharacteristic (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  OrtCustomOpInputOutputCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** input_index, int** output_index);
  void (*ReleaseMayInplace)(int* input_index, int* output_index);
  size_t (*GetAliasMap)(int** input_index, int** output_index);  // returns the arrays' length
  void (*ReleaseAliasMap)(int* input_index, int* output_index);
};

#define KVFOLD_ORT_POSITION(member, index) \
  static_assert(offsetof(OrtApi, member) == (index) * sizeof(void*), "OrtApi::" #member " moved")
KVFOLD_ORT_POSITION(CreateStatus, 0);
KVFOLD_ORT_POSITION(GetErrorMessage, 2);
KVFOLD_ORT_POSITION(CreateCustomOpDomain, 26);
KVFOLD_ORT_POSITION(GetTensorMutableData, 51);
KVFOLD_ORT_POSITION(GetTensorElementType, 60);
KVFOLD_ORT_POSITION(GetTensorTypeAndShape, 65);
KVFOLD_ORT_POSITION(KernelInfoGetAttribute_float, 85);
KVFOLD_ORT_POSITION(KernelContext_GetOutput, 91);
KVFOLD_ORT_POSITION(ReleaseStatus, 93);
KVFOLD_ORT_POSITION(ReleaseTensorTypeAndShapeInfo, 99);
KVFOLD_ORT_POSITION(KernelContext_GetGPUComputeStream, 193);
KVFOLD_ORT_POSITION(KernelInfo_GetInputCount, 230);
KVFOLD_ORT_POSITION(KernelInfo_GetInputName, 232);
KVFOLD_ORT_POSITION(KernelInfo_GetNodeName, 244);
KVFOLD_ORT_POSITION(KernelContext_ParallelFor, 274);
#undef KVFOLD_ORT_POSITION
static_assert(offsetof(OrtCustomOp, CreateKernelV2) == 136, "OrtCustomOp::CreateKernelV2 moved");
static_assert(offsetof(OrtCustomOp, GetAliasMap) == 192, "OrtCustomOp::GetAliasMap moved");
static_assert(sizeof(OrtCustomOp) == 208, "OrtCustomOp has another size");
