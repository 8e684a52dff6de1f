// A node as TensorRT hands it to the plugin's creator: plugins/tensorrt/attributes.py. Pure; fields.h reads and
// writes TensorRT's own form.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cuda/cpp/node/attention_spec.h"

namespace kvfold::cuda {

// What is neither one number nor a text, in words.
struct Unreadable {
  std::string description;
};
using Value = std::variant<int64_t, double, std::string, Unreadable>;
using Values = std::vector<std::pair<std::string, Value>>;

// A value as Python's repr has it.
std::string describe(const Value& value);

// One attention node: everything that is known before types and shapes are.
struct Node {
  std::string name;
  Attributes attributes;
  std::vector<std::string> inputs;  // schema names of those that the node has, in its order

  bool has(const std::string& input) const { return index_of(input) >= 0; }
  // Position of an input; -1 where the node does not have it.
  int32_t index_of(const std::string& input) const;
  bool writes() const { return has("slot_mapping"); }
  // The query holds key and value too; a consumer has neither.
  bool packed() const { return writes() && !has("key"); }
  // Schema names of what the node returns, in order.
  std::vector<std::string> outputs() const;
  // Position of the input that an output shares its memory with; -1: none.
  int32_t aliased_input(int32_t output) const;
  // The node's attributes as a plan holds them; `read_node` takes them back.
  Values values() const;
  // Throws a KernelError that names this node.
  [[noreturn]] void fail(const std::string& problem) const;
};

// Every attribute that a node may have, with Python's name of its type: int, float or str.
const std::vector<std::pair<std::string, std::string>>& attribute_types();

// The node that a creator is asked to make.
// Throws KernelError where an attribute is missing, unknown, of the wrong type or not computed by the kernels.
Node read_node(const std::string& name, const Values& values);

// Every input of the op by its schema name, in order.
const std::vector<std::string>& schema_inputs();

}  // namespace kvfold::cuda
