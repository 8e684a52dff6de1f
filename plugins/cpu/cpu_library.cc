// The entry point that ONNX Runtime calls: puts kvfold's ops into the domain "kvfold".

#include <vector>

#include "onnxruntime/custom_op.h"
#include "cpu/int8_embedding/int8_embedding.h"
#include "cpu/int4_linear/int4_linear.h"
#include "cpu/int8_linear/int8_linear.h"
#include "cpu/isa.h"
#include "cpu/paged_attention/paged_attention.h"

namespace {

// One line an op; an op with several cache types has one line for each.
const std::vector<const OrtCustomOp*>& all_ops() {
  static const std::vector<const OrtCustomOp*> ops = {
      kvfold::custom_op<kvfold::PagedAttention<float>>(),
      kvfold::custom_op<kvfold::PagedAttention<int8_t>>(),
      kvfold::custom_op<kvfold::Int8Embedding>(),
      kvfold::custom_op<kvfold::Int8Linear>(),
      kvfold::custom_op<kvfold::Int4Linear>(),
  };
  return ops;
}

}  // namespace

extern "C" KVFOLD_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  return kvfold::register_ops(options, base, all_ops());
}
