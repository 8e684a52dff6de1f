// The op kvfold::Int8Linear; its contract is plugins/int8_linear/schema.py.
#pragma once

#include "cpu/int8_linear/int8_linear_kernel.h"
#include "cpu/linear/linear_op.h"

namespace kvfold {

class Int8Linear {
 public:
  explicit Int8Linear(const Attributes& attributes) : attributes_(attributes) {}
  static const OpDeclaration& declaration();
  void compute(Context& context) const;

 private:
  Int8Product packed_weight(const Context& context) const;

  LinearAttributes attributes_;
};

}  // namespace kvfold
