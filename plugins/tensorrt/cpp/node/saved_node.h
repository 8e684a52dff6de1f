// A node in a plan, with the kernels that the plan was built with: plugins/tensorrt/saved_node.py. Pure.
#pragma once

#include <string>

#include "tensorrt/cpp/node/attributes.h"

namespace kvfold {

// What a plan holds of a node; `read_saved_node` takes it back.
Values saved_values(const Node& node, const std::string& kernels_sha256);

// The node that a plan holds. `kernels_sha256` is of the kernels that are to run it: the plan fixes the size of the
// scratch memory for those that it was built with, and others would write past its end.
// Throws KernelError where the plan was built with others, or `read_node` refuses the attributes.
Node read_saved_node(const std::string& name, const Values& values, const std::string& kernels_sha256);

}  // namespace kvfold
