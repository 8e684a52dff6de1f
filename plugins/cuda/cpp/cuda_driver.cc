#include "cuda/cpp/cuda_driver.h"

#include <dlfcn.h>

#include "cuda/cpp/text.h"

namespace kvfold::cuda {

CudaDriver::CudaDriver() {
  void* const handle = dlopen("libcuda.so.1", RTLD_NOW);
  if (handle == nullptr) {
    throw KernelError(text("the CUDA driver cannot be loaded (", dlerror(), "); attention runs on an NVIDIA GPU"));
  }
  const auto find = [&](auto& function, const char* name) {
    void* const address = dlsym(handle, name);
    if (address == nullptr) throw KernelError(text("the CUDA driver has no ", name, "; install a newer one"));
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
  find(get_error_name, "cuGetErrorName");
  find(get_error_string, "cuGetErrorString");
  find(get_context, "cuCtxGetCurrent");
  find(get_context_id, "cuCtxGetId");  // CUDA 12
  find(get_device, "cuCtxGetDevice");
  find(get_device_attribute, "cuDeviceGetAttribute");
  find(load_module, "cuModuleLoadData");
  find(get_function, "cuModuleGetFunction");
  find(set_function_attribute, "cuFuncSetAttribute");
  find(launch_kernel, "cuLaunchKernel");
}

void CudaDriver::check(CudaStatus status, const char* function, const std::string& what) const {
  if (status == 0) return;
  const auto in_words = [&](CudaStatus (*describe)(CudaStatus, const char**)) {
    const char* words = nullptr;
    return describe(status, &words) == 0 ? std::string(words) : text("error ", status);
  };
  throw KernelError(text("the CUDA driver's ", function, " failed", what.empty() ? "" : " (" + what + ")", ": ",
                         in_words(get_error_name), ": ", in_words(get_error_string)));
}

}  // namespace kvfold::cuda
