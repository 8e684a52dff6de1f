// The ops of ONNX Runtime's CUDA provider, registered for its CPU provider: the same code over memory of the host.

#include "cuda/onnxruntime/attention_op.h"

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  static std::vector<OrtCustomOp> ops;
  std::vector<const OrtCustomOp*> registered;
  if (ops.empty()) {
    for (const OrtCustomOp* op : kvfold::cuda::onnxruntime_ops()) {
      ops.push_back(*op);
      ops.back().GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    }
  }
  for (const OrtCustomOp& op : ops) registered.push_back(&op);
  return kvfold::register_ops(options, base, registered);
}
