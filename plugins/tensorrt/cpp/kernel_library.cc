#include "kernel_library.h"

#include <set>

#include "text.h"

namespace kvfold {

std::vector<int> KernelLibrary::architectures() const {
  std::set<int> found;
  for (const CompiledKernel& kernel : *this) found.insert(kernel.architecture);
  return {found.begin(), found.end()};
}

const CompiledKernel& KernelLibrary::find(const std::string& variant, int architecture) const {
  const CompiledKernel* nearest = nullptr;
  std::vector<int> compiled;
  for (const CompiledKernel& kernel : *this) {
    if (kernel.variant != variant) continue;
    compiled.push_back(kernel.architecture);
    const bool runs = kernel.architecture / 10 == architecture / 10 && kernel.architecture <= architecture;
    if (runs && (nearest == nullptr || kernel.architecture > nearest->architecture)) nearest = &kernel;
  }
  if (nearest != nullptr) return *nearest;
  throw KernelError(text("there is no attention kernel ", variant, " for SM ", architecture, " (compiled for ",
                         compiled.empty() ? "no architecture" : join(compiled),
                         "); build the engine with SM ", architecture, " among its architectures"));
}

}  // namespace kvfold
