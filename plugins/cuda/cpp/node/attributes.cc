#include "cuda/cpp/node/attributes.h"

#include <algorithm>
#include <cmath>

#include "cuda/cpp/text.h"

namespace kvfold::cuda {
namespace {

constexpr const char* kInputs = "inputs";

// One attribute: where its value lies in Attributes.
struct Field {
  const char* name;
  std::variant<int32_t Attributes::*, float Attributes::*, std::string Attributes::*> member;
  bool required;
};

constexpr std::array<Field, 11> kFields = {{
    {"num_heads", &Attributes::num_heads, true},
    {"kv_num_heads", &Attributes::kv_num_heads, true},
    {"scale", &Attributes::scale, true},
    {"softcap", &Attributes::softcap, false},
    {"local_window_size", &Attributes::local_window_size, false},
    {"sink_size", &Attributes::sink_size, false},
    {"do_rotary", &Attributes::do_rotary, false},
    {"rotary_interleaved", &Attributes::rotary_interleaved, false},
    {"qk_norm_epsilon", &Attributes::qk_norm_epsilon, false},
    {"k_quant_type", &Attributes::k_quant_type, false},
    {"v_quant_type", &Attributes::v_quant_type, false},
}};
constexpr const char* kPythonTypes[] = {"int", "float", "str"};  // in the order of Field::member

const std::vector<std::pair<const char*, const char*>> kTogether = {
    {"key", "value"}, {"cos_cache", "sin_cache"}, {"q_norm_weight", "k_norm_weight"}, {"k_scale", "v_scale"}};

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string quoted(const std::string& value) { return "'" + value + "'"; }

// Whether the value has the type, and its range.
bool set(int32_t& to, const Value& value) {
  const auto* number = std::get_if<int64_t>(&value);
  if (number == nullptr || *number != static_cast<int32_t>(*number)) return false;
  to = static_cast<int32_t>(*number);
  return true;
}

bool set(float& to, const Value& value) {
  const auto* number = std::get_if<double>(&value);
  if (number != nullptr) to = static_cast<float>(*number);
  return number != nullptr;
}

bool set(std::string& to, const Value& value) {
  const auto* string = std::get_if<std::string>(&value);
  if (string != nullptr) to = *string;
  return string != nullptr;
}

void check_present(const Values& values) {
  std::vector<std::string> required;
  for (const Field& field : kFields) {
    if (field.required) required.push_back(field.name);
  }
  required.push_back(kInputs);
  for (const std::string& name : required) {
    const auto has_name = [&](const auto& value) { return value.first == name; };
    if (std::none_of(values.begin(), values.end(), has_name)) {
      throw KernelError(text("attribute ", name, " is missing; lower the graph again with this kvfold"));
    }
  }
}

// Sets one attribute; `inputs` is the text that is none of the op's.
void set_attribute(const std::string& name, const Value& value, Attributes& attributes, std::string& inputs) {
  const auto field =
      std::find_if(kFields.begin(), kFields.end(), [&](const Field& each) { return each.name == name; });
  bool accepted;
  const char* type;
  if (field != kFields.end()) {
    accepted = std::visit([&](auto member) { return set(attributes.*member, value); }, field->member);
    type = kPythonTypes[field->member.index()];
  } else if (name == kInputs) {
    accepted = set(inputs, value);
    type = "str";
  } else {
    std::vector<std::string> known;
    for (const auto& each : attribute_types()) known.push_back(each.first);
    throw KernelError(text("attribute ", name, " is unknown; known are ", join(known)));
  }
  if (!accepted) throw KernelError(text("attribute ", name, " is ", describe(value), ", and must be one ", type));
}

std::vector<std::string> split_inputs(const std::string& listed) {
  std::vector<std::string> names = {""};
  for (const char letter : listed) {
    if (letter == ',') {
      names.emplace_back();
    } else {
      names.back() += letter;
    }
  }
  for (const std::string& name : names) {
    if (!contains(schema_inputs(), name)) {
      throw KernelError(text("attribute inputs lists ", quoted(name), "; inputs are ", join(schema_inputs())));
    }
    const auto times = std::count(names.begin(), names.end(), name);
    if (times > 1) throw KernelError(text("attribute inputs lists ", name, " ", times, " times"));
  }
  return names;
}

// Kernels take a row's maximum before they multiply by it.
void check_scale(float scale) {
  if (!(scale > 0 && std::isfinite(scale))) {
    throw KernelError(text("scale is ", python_float(scale), ", and must be a positive number"));
  }
}

void check_attributes(const Attributes& of) {
  if (of.kv_num_heads < 1 || of.num_heads < 1 || of.num_heads % of.kv_num_heads != 0) {
    throw KernelError(text("num_heads ", of.num_heads, " is not a multiple of kv_num_heads ", of.kv_num_heads));
  }
  for (const auto& [name, value] : {std::pair{"k_quant_type", of.k_quant_type}, {"v_quant_type", of.v_quant_type}}) {
    if (value != "NONE" && value != "PER_CHANNEL") {
      throw KernelError(text(name, " is ", quoted(value), "; the kernels have NONE and PER_CHANNEL"));
    }
  }
  if (of.k_quant_type != of.v_quant_type) {
    throw KernelError(text("k_quant_type ", of.k_quant_type, " and v_quant_type ", of.v_quant_type, " differ"));
  }
  if (of.rotary_interleaved != 0) {
    throw KernelError("rotary_interleaved is 1; the kernels rotate the half-split layout (0) only");
  }
  if (of.do_rotary != 0 && of.do_rotary != 1) {
    throw KernelError(text("do_rotary is ", of.do_rotary, ", and must be 0 or 1"));
  }
  if (of.softcap < 0) {
    throw KernelError(text("softcap is ", python_float(of.softcap), ", and must be 0 (off) or more"));
  }
  if (of.local_window_size != -1 && of.local_window_size < 1) {
    throw KernelError(text("local_window_size is ", of.local_window_size, ", and must be -1 (off), 1 or more"));
  }
  if (of.sink_size < 0) throw KernelError(text("sink_size is ", of.sink_size, ", and must be 0 or more"));
}

// A consumer has no slots; everything else that the schema requires must be there.
void check_inputs(const Attributes& attributes, const std::vector<std::string>& inputs) {
  std::vector<std::string> required = {"query", "key_cache", "value_cache", "cumulative_sequence_length",
                                       "past_seqlens", "block_table"};
  if (attributes.do_rotary != 0) required.insert(required.end(), {"cos_cache", "sin_cache"});
  if (attributes.k_quant_type != "NONE") required.insert(required.end(), {"k_scale", "v_scale"});
  std::vector<std::string> missing;
  for (const std::string& name : required) {
    if (!contains(inputs, name)) missing.push_back(name);
  }
  if (!missing.empty()) throw KernelError("attribute inputs lacks " + join(missing));
  for (const auto& [one, other] : kTogether) {
    if (contains(inputs, one) != contains(inputs, other)) {
      throw KernelError(text("attribute inputs must list both ", one, " and ", other, ", or neither"));
    }
  }
  if (!contains(inputs, "slot_mapping") && contains(inputs, "key")) {
    throw KernelError("attribute inputs lists key, which a consumer (no slot_mapping) does not have");
  }
  if (attributes.k_quant_type == "NONE" && contains(inputs, "k_scale")) {
    throw KernelError("attribute inputs lists k_scale, which caches with k_quant_type NONE do not have");
  }
}

}  // namespace

std::string describe(const Value& value) {
  if (const auto* number = std::get_if<int64_t>(&value)) return std::to_string(*number);
  if (const auto* number = std::get_if<double>(&value)) return python_float(*number);
  if (const auto* string = std::get_if<std::string>(&value)) return quoted(*string);
  return std::get<Unreadable>(value).description;
}

const std::vector<std::string>& schema_inputs() {
  static const std::vector<std::string> names = {
      "query", "key", "value", "key_cache", "value_cache", "cumulative_sequence_length", "past_seqlens",
      "block_table", "cos_cache", "sin_cache", "slot_mapping", "head_sink", "q_norm_weight", "k_norm_weight",
      "k_scale", "v_scale"};
  return names;
}

const std::vector<std::pair<std::string, std::string>>& attribute_types() {
  static const auto types = [] {
    std::vector<std::pair<std::string, std::string>> found;
    for (const Field& field : kFields) found.emplace_back(field.name, kPythonTypes[field.member.index()]);
    found.emplace_back(kInputs, "str");
    return found;
  }();
  return types;
}

Node read_node(const std::string& name, const Values& values) try {
  Node node{name, {}, {}};
  std::string inputs;
  check_present(values);
  for (const auto& [attribute, value] : values) set_attribute(attribute, value, node.attributes, inputs);
  check_scale(node.attributes.scale);
  node.inputs = split_inputs(inputs);
  check_attributes(node.attributes);
  check_inputs(node.attributes, node.inputs);
  return node;
} catch (const KernelError& error) {
  throw KernelError(text("attention node ", name, ": ", error.what()));
}

int32_t Node::index_of(const std::string& input) const {
  const auto found = std::find(inputs.begin(), inputs.end(), input);
  return found == inputs.end() ? -1 : static_cast<int32_t>(found - inputs.begin());
}

std::vector<std::string> Node::outputs() const {
  if (writes()) return {"output", "key_cache_out", "value_cache_out"};
  return {"output"};
}

int32_t Node::aliased_input(int32_t output) const {
  static const std::array<const char*, 3> shared = {"", "key_cache", "value_cache"};
  return index_of(shared.at(static_cast<size_t>(output)));
}

Values Node::values() const {
  Values all;
  for (const Field& field : kFields) {
    std::visit(
        [&](auto member) {
          using Member = std::decay_t<decltype(attributes.*member)>;
          if constexpr (std::is_same_v<Member, int32_t>) {
            all.emplace_back(field.name, int64_t{attributes.*member});
          } else if constexpr (std::is_same_v<Member, float>) {
            all.emplace_back(field.name, double{attributes.*member});
          } else {
            all.emplace_back(field.name, attributes.*member);
          }
        },
        field.member);
  }
  std::string listed;
  for (const std::string& input : inputs) listed += (listed.empty() ? "" : ",") + input;
  all.emplace_back(kInputs, listed);
  return all;
}

void Node::fail(const std::string& problem) const { throw KernelError(text("attention node ", name, ": ", problem)); }

}  // namespace kvfold::cuda
