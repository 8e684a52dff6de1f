#include "cuda/cpp/cuda_driver.h"

#include <dlfcn.h>

#include "cuda/cpp/text.h"

#if defined(__GLIBC__) && defined(__x86_64__)
// glibc 2.34 gave them a new version as they moved into libc; a wheel is for 2.28, which has the first one only.
__asm__(".symver dlopen,dlopen@GLIBC_2.2.5");
__asm__(".symver dlsym,dlsym@GLIBC_2.2.5");
__asm__(".symver dlerror,dlerror@GLIBC_2.2.5");
#endif

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
