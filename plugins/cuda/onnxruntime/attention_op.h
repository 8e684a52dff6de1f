// PagedAttention for ONNX Runtime's CUDA provider: its tensors and stream, handed to the kernels of an engine.
//
// Inputs lie at their positions in plugins/paged_attention/schema.py, absent ones have no name. A consumer of another
// layer's cache has neither key, value nor slot_mapping, and one output of the first three. The fourth output is the
// scratch of the call: ONNX Runtime allocates it as any tensor, in its arena and in the order of its stream, which is
// allowed while a CUDA graph is captured. The input after the schema's is the scratch of the node before, which is
// not read: what has no reader, ONNX Runtime keeps to the end of a run. The attribute `kernels` is the sha256 of the
// kernels that the engine was built with.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda/cpp/kernel_library.h"
#include "cuda/cpp/node/attributes.h"
#include "onnxruntime/custom_op.h"

namespace kvfold::cuda {

class PagedAttentionOp {
 public:
  // Throws KernelError where the node breaks the contract, or its kernels are not open or not for this GPU.
  explicit PagedAttentionOp(const kvfold::Attributes& attributes);

  // Puts the kernels of one call on ONNX Runtime's stream. Nothing is copied, allocated or waited for.
  // Throws KernelError where a tensor breaks the contract or the driver refuses.
  void compute(const Context& context) const;

 private:
  const Node node_;
  const std::vector<size_t> positions_;  // of the node's inputs
  const KernelLibrary& kernels_;
};

// The op for one type of activations and one of caches.
template <ONNXTensorElementDataType kActivation, ONNXTensorElementDataType kCache>
class TypedPagedAttention : public PagedAttentionOp {
 public:
  using PagedAttentionOp::PagedAttentionOp;
  static const OpDeclaration& declaration();
};

// The op for every type that there are kernels for.
const std::vector<const OrtCustomOp*>& onnxruntime_ops();

}  // namespace kvfold::cuda
