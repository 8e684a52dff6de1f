// kvfold::PagedAttention; the contract is plugins/paged_attention/schema.py.
//
//   paged_attention_step.*    reads and checks the inputs of one call
//   paged_attention_tokens.*  QK-norm, RoPE, quantise, write: new tokens into cache and query rows
//   paged_attention_split.h   the border to the instruction sets, and the law of equal bits
//   paged_attention.cc        cuts the attention into tasks for ONNX Runtime's pool
#pragma once

#include "onnxruntime/custom_op.h"
#include "cpu/paged_attention/paged_attention_step.h"

namespace kvfold {

// One op per cache type (float or int8_t); ONNX Runtime picks by the type of key_cache.
template <typename Cache>
class PagedAttention {
 public:
  explicit PagedAttention(const Attributes& attributes);
  void compute(const Context& context) const;
  static const OpDeclaration& declaration();

 private:
  AttentionAttributes attributes_;
};

}  // namespace kvfold
