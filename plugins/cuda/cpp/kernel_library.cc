#include "cuda/cpp/kernel_library.h"

#include <set>

#include "cuda/cpp/text.h"

namespace kvfold::cuda {
namespace {

// As `runs_on` of kernel_library.py: from SM 90 on a cubin runs on its very architecture only.
bool runs_on(int compiled, int architecture) {
  if (architecture >= 90) return compiled == architecture;
  return compiled / 10 == architecture / 10 && compiled <= architecture;
}

}  // namespace

int CompiledKernel::constant(const std::string& name) const {
  const auto found = constants.find(name);
  return found == constants.end() ? 0 : found->second;
}

std::vector<int> KernelLibrary::architectures() const {
  std::set<int> found;
  for (const CompiledKernel& kernel : kernels) found.insert(kernel.architecture);
  return {found.begin(), found.end()};
}

const CompiledKernel& KernelLibrary::find(const std::string& variant, int architecture) const {
  const CompiledKernel* nearest = nullptr;
  std::vector<int> compiled;
  for (const CompiledKernel& kernel : kernels) {
    if (kernel.variant != variant) continue;
    compiled.push_back(kernel.architecture);
    const bool runs = runs_on(kernel.architecture, architecture);
    if (runs && (nearest == nullptr || kernel.architecture > nearest->architecture)) nearest = &kernel;
  }
  if (nearest != nullptr) return *nearest;
  throw KernelError(text("there is no attention kernel ", variant, " for SM ", architecture, " (compiled for ",
                         compiled.empty() ? "no architecture" : join(compiled),
                         "); build the engine with SM ", architecture, " among its architectures"));
}

}  // namespace kvfold::cuda
