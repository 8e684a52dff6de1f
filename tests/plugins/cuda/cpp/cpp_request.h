// One call of the op as lines of text, so that Python and C++ are asked the same question:
//
//   value NAME int|float|str VALUE      an attribute of the node
//   tensor DTYPE SIZE,SIZE,...          an input, in the node's order
//   address NUMBER                      of each input, then of each output
//   architecture, workspace, stream NUMBER
//   kernels SHA256                      that the plan was built with, `none` where it does not say; else the library's
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/cpp/node/attributes.h"
#include "cuda/cpp/node/descriptions.h"

struct Request {
  kvfold::cuda::Values values;
  std::vector<kvfold::cuda::Tensor> tensors;
  std::vector<uint64_t> addresses;
  int architecture = 0;
  uint64_t workspace = 0;
  uint64_t stream = 0;
  std::string kernels;
};

inline kvfold::cuda::Value read_value(const std::string& type, const std::string& text) {
  if (type == "int") return int64_t{std::stoll(text)};
  if (type == "float") return std::stod(text);
  return text;
}

inline kvfold::cuda::Dims read_dims(const std::string& text) {
  kvfold::cuda::Dims dims;
  std::istringstream sizes(text);
  for (std::string size; std::getline(sizes, size, ',');) dims.push_back(std::stoll(size));
  return dims;
}

inline Request read_request(const std::string& text) {
  Request request;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string kind, first, second, third;
    words >> kind >> first >> second >> third;
    if (kind == "value") request.values.emplace_back(first, read_value(second, third));
    if (kind == "tensor") request.tensors.push_back({first, read_dims(second)});
    if (kind == "address") request.addresses.push_back(std::stoull(first));
    if (kind == "architecture") request.architecture = std::stoi(first);
    if (kind == "workspace") request.workspace = std::stoull(first);
    if (kind == "stream") request.stream = std::stoull(first);
    if (kind == "kernels") request.kernels = first;
  }
  return request;
}
