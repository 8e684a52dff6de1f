// The op kvfold::Int8Linear; its contract is plugins/int8_linear/schema.py.
#pragma once

#include "onnxruntime/custom_op.h"
#include "cpu/int8_linear/int8_linear_kernel.h"

namespace kvfold {

class Int8Linear {
 public:
  explicit Int8Linear(const Attributes& attributes);
  static const OpDeclaration& declaration();
  void compute(Context& context) const;

 private:
  Int8Product packed_weight(const Context& context) const;

  std::size_t in_features_, out_features_;
  InputActivation activation_;
  std::size_t planes_;
};

}  // namespace kvfold
