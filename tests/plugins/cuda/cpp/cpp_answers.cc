// What C++ makes of a request, as text for Python to compare with its own.

#include <cstring>

#include "cuda/cpp/calls.h"
#include "cuda/cpp/open_kernels.h"
#include "cuda/cpp/text.h"
#include "tests/plugins/cuda/cpp/cpp_request.h"

namespace {

using namespace kvfold::cuda;

std::string describe(const Argument& argument) {
  if (const auto* pointer = std::get_if<uint64_t>(&argument)) return text("pointer:", *pointer);
  if (const auto* integer = std::get_if<int32_t>(&argument)) return text("int32:", *integer);
  uint32_t bits;
  std::memcpy(&bits, &std::get<float>(argument), sizeof bits);
  return text("float32:", bits);
}

// Everything up to the first error, which ends the answer.
void answer(const Request& request, std::ostream& to) {
  const KernelLibrary& kernels = kernels_of(request.kernels);
  const Node node = read_node("layers.3", request.values);
  to << "node of " << join(node.inputs) << '\n';
  const AttentionSpec spec = spec_of(node, request.tensors);
  for (const char* kernel : kKernelNames) to << variant_name(kernel, spec) << '\n';
  const Shapes shapes = shapes_of(node, request.tensors);
  Buffers buffers;
  std::vector<std::string> names = node.inputs;
  for (const std::string& output : node.outputs()) names.push_back(output);
  for (size_t index = 0; index < names.size(); ++index) buffers[names[index]] = request.addresses.at(index);
  for (const Launch& launch :
       resolve(kernels, request.architecture, spec, shapes, buffers, request.workspace)) {
    to << launch.kernel->variant << " for " << launch.kernel->architecture << " grid " << join(launch.grid) << '\n';
    for (const Argument& argument : launch.arguments) to << describe(argument) << ' ';
    to << '\n';
  }
  to << workspace_of(kernels, request.architecture, spec, shapes) << '\n';
  to << workspace_bytes(kernels, kernels.architectures(), spec, shapes) << '\n';
}

}  // namespace

extern "C" const char* kvfold_answer(const char* text) {
  static std::string answered;
  std::ostringstream stream;
  try {
    answer(read_request(text), stream);
  } catch (const KernelError& error) {
    stream << "error: " << error.what() << '\n';
  }
  answered = stream.str();
  return answered.c_str();
}
