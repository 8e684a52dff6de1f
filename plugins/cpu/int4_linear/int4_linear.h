// The op kvfold::Int4Linear; its contract is plugins/int4_linear/schema.py.
#pragma once

#include "cpu/int4_linear/int4_linear_kernel.h"
#include "cpu/linear/linear_op.h"

namespace kvfold {

class Int4Linear {
 public:
  explicit Int4Linear(const Attributes& attributes) : attributes_(attributes) {}
  static const OpDeclaration& declaration();
  void compute(Context& context) const;

 private:
  Int4Product packed_weight(const Context& context) const;

  LinearAttributes attributes_;
};

}  // namespace kvfold
