// The op kvfold::Int8Embedding; its contract is plugins/int8_embedding/schema.py.
#pragma once

#include "onnxruntime/custom_op.h"

namespace kvfold {

class Int8Embedding {
 public:
  explicit Int8Embedding(const Attributes& attributes);
  static const OpDeclaration& declaration();
  void compute(Context& context) const;

 private:
  std::size_t rows_, columns_;
};

}  // namespace kvfold
