#include "tensorrt/cpp/fields.h"

#include "cuda/cpp/text.h"

namespace kvfold::tensorrt {

using namespace cuda;

namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

template <typename T, typename As>
std::vector<Value> numbers(const PluginField& field) {
  const auto* first = static_cast<const T*>(field.data);
  std::vector<Value> values;
  for (int32_t index = 0; index < field.length; ++index) values.push_back(As{first[index]});
  return values;
}

std::vector<Value> read_numbers(const PluginField& field) {
  switch (field.type) {
    case PluginFieldType::kINT32:
      return numbers<int32_t, int64_t>(field);
    case PluginFieldType::kINT64:
      return numbers<int64_t, int64_t>(field);
    case PluginFieldType::kFLOAT32:
      return numbers<float, double>(field);
    case PluginFieldType::kFLOAT64:
      return numbers<double, double>(field);
    default:
      return {Unreadable{text("of TensorRT's field type ", static_cast<int>(field.type))}};
  }
}

Value read(const PluginField& field) {
  if (field.type == PluginFieldType::kCHAR) {
    const std::string value(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
    return value.substr(0, value.find_last_not_of('\0') + 1);
  }
  const std::vector<Value> values = read_numbers(field);
  if (values.size() == 1) return values[0];
  std::vector<std::string> described;
  for (const Value& value : values) described.push_back(describe(value));
  return Unreadable{"[" + join(described) + "]"};
}

}  // namespace

Values read_fields(const nvinfer1::PluginFieldCollection& fields) {
  Values values;
  for (int32_t index = 0; index < fields.nbFields; ++index) {
    values.emplace_back(fields.fields[index].name, read(fields.fields[index]));
  }
  return values;
}

OwnedFields::OwnedFields(const Values& values) : values_(values) {
  for (const auto& [name, value] : values_) {
    if (const auto* string = std::get_if<std::string>(&value)) {
      const auto length = static_cast<int32_t>(string->size() + 1);
      fields_.emplace_back(name.c_str(), string->c_str(), PluginFieldType::kCHAR, length);
    } else if (const auto* real = std::get_if<double>(&value)) {
      numbers_.emplace_back(static_cast<float>(*real));
      fields_.emplace_back(name.c_str(), &std::get<float>(numbers_.back()), PluginFieldType::kFLOAT32, 1);
    } else {
      numbers_.emplace_back(static_cast<int32_t>(std::get<int64_t>(value)));
      fields_.emplace_back(name.c_str(), &std::get<int32_t>(numbers_.back()), PluginFieldType::kINT32, 1);
    }
  }
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

}  // namespace kvfold::tensorrt
