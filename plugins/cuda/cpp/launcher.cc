#include "cuda/cpp/launcher.h"

#include "cuda/cpp/text.h"

namespace kvfold::cuda {
namespace {

constexpr unsigned kWarp = 32;
// More than this a kernel must ask for (CUDA C++ Programming Guide, compute capabilities).
constexpr unsigned kStaticSharedBytes = 48 * 1024;

}  // namespace

Launcher& Launcher::shared() {
  static Launcher launcher;
  return launcher;
}

void Launcher::load_all(const KernelLibrary& kernels) {
  CudaContext current = nullptr;
  driver_.check(driver_.get_context(&current), "cuCtxGetCurrent");
  if (current == nullptr) return;
  const CudaContextId id = context();
  const int gpu = architecture(id);
  for (const CompiledKernel& kernel : kernels.kernels) function(id, kernels.find(kernel.variant, gpu));
}

void Launcher::launch(const KernelLibrary& kernels, const AttentionSpec& spec, const Shapes& shapes,
                      const Buffers& buffers, uint64_t workspace, CudaStream stream) {
  const CudaContextId id = context();
  for (Launch& each : resolve(kernels, architecture(id), spec, shapes, buffers, workspace)) {
    submit(function(id, *each.kernel), each, stream);
  }
}

int Launcher::architecture() { return architecture(context()); }

// A new context may have the address of a destroyed one, so contexts go by id.
CudaContextId Launcher::context() const {
  CudaContext current = nullptr;
  driver_.check(driver_.get_context(&current), "cuCtxGetCurrent");
  if (current == nullptr) throw KernelError("attention was called without a CUDA context; its engine makes one");
  CudaContextId id = 0;
  driver_.check(driver_.get_context_id(current, &id), "cuCtxGetId");
  return id;
}

void Launcher::submit(CudaFunction function, Launch& launch, CudaStream stream) const {
  void* scratch[2] = {nullptr, nullptr};  // Triton's global and profile scratch, unused by our kernels
  std::vector<void*> parameters;
  for (Argument& argument : launch.arguments) {
    parameters.push_back(std::visit([](auto& value) -> void* { return &value; }, argument));
  }
  parameters.insert(parameters.end(), {&scratch[0], &scratch[1]});
  const auto [x, y, z] = launch.grid;
  const CompiledKernel& kernel = *launch.kernel;
  const CudaStatus status = driver_.launch_kernel(function, x, y, z, kWarp * kernel.num_warps, 1, 1,
                                                  kernel.shared_bytes, stream, parameters.data(), nullptr);
  if (status == 0) return;  // the text of an error costs more than a launch
  driver_.check(status, "cuLaunchKernel", text("kernel ", kernel.variant, ", grid (", join(launch.grid), ")"));
}

int Launcher::architecture(CudaContextId context) {
  const std::lock_guard<std::mutex> lock(mutex_);
  int& found = architectures_[context];
  if (found == 0) {
    CudaDevice device = 0;
    driver_.check(driver_.get_device(&device), "cuCtxGetDevice");
    int major = 0, minor = 0;
    driver_.check(driver_.get_device_attribute(&major, kComputeCapabilityMajor, device), "cuDeviceGetAttribute");
    driver_.check(driver_.get_device_attribute(&minor, kComputeCapabilityMinor, device), "cuDeviceGetAttribute");
    found = 10 * major + minor;
  }
  return found;
}

CudaFunction Launcher::function(CudaContextId context, const CompiledKernel& kernel) {
  const std::lock_guard<std::mutex> lock(mutex_);
  CudaFunction& found = functions_[{context, &kernel}];
  if (found == nullptr) {
    const std::string what = text("kernel ", kernel.variant, " for SM ", kernel.architecture);
    CudaModule module = nullptr;
    CudaFunction function = nullptr;
    driver_.check(driver_.load_module(&module, kernel.cubin.data()), "cuModuleLoadData", what);
    driver_.check(driver_.get_function(&function, module, kernel.symbol.c_str()), "cuModuleGetFunction", what);
    if (kernel.shared_bytes > kStaticSharedBytes) {
      const CudaStatus status =
          driver_.set_function_attribute(function, kMaxDynamicSharedBytes, static_cast<int>(kernel.shared_bytes));
      driver_.check(status, "cuFuncSetAttribute", what);
    }
    found = function;
  }
  return found;
}

}  // namespace kvfold::cuda
