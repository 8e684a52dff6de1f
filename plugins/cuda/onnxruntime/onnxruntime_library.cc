// The entry point that ONNX Runtime calls.

#include "cuda/onnxruntime/attention_op.h"

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  return kvfold::register_ops(options, base, kvfold::cuda::onnxruntime_ops());
}
