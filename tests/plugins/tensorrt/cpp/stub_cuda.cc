// Stands in for libcuda.so.1: the library for GPUs opens it, and what it calls is written to $STUB_CUDA_LOG.
//
// A GPU of compute capability $STUB_CUDA_ARCHITECTURE. The current context is at address 7; where
// $STUB_CUDA_CONTEXTS is set, it is another one at every call that asks for its id. A kernel's entry point is named
// NAME_KINDS with a letter for each parameter: p(ointer), i(nt32), f(loat32); a launch logs their values.
// $STUB_CUDA_FAIL names a call that fails.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

FILE* Log() {
  static FILE* file = std::fopen(std::getenv("STUB_CUDA_LOG"), "w");
  return file;
}

int Status(const char* call) {
  const char* failing = std::getenv("STUB_CUDA_FAIL");
  return failing && !std::strcmp(failing, call) ? 209 : 0;
}

}  // namespace

extern "C" {

int cuCtxGetCurrent(void** context) {
  *context = reinterpret_cast<void*>(std::strcmp(std::getenv("STUB_CUDA_FAIL"), "context") ? 7 : 0);
  return 0;
}

int cuCtxGetId(void* context, unsigned long long* id) {
  static unsigned long long asked = 0;
  *id = reinterpret_cast<intptr_t>(context) + (std::getenv("STUB_CUDA_CONTEXTS") ? ++asked : 0);
  return 0;
}

int cuCtxGetDevice(int* device) {
  *device = 0;
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  const int architecture = std::atoi(std::getenv("STUB_CUDA_ARCHITECTURE"));
  *value = attribute == 75 ? architecture / 10 : attribute == 76 ? architecture % 10 : -1;
  return 0;
}

int cuModuleLoadData(void** module, const void* image) {
  std::fprintf(Log(), "load %s\n", static_cast<const char*>(image));
  *module = reinterpret_cast<void*>(11);
  return Status("cuModuleLoadData");
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  std::fprintf(Log(), "function %d %s\n", static_cast<int>(reinterpret_cast<intptr_t>(module)), name);
  *function = strdup(name);
  return Status("cuModuleGetFunction");
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  std::fprintf(Log(), "attribute %s %d %d\n", static_cast<const char*>(function), attribute, value);
  return 0;
}

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void* stream, void** parameters, void** extra) {
  const char* name = static_cast<const char*>(function);
  std::fprintf(Log(), "launch %s %u %u %u %u %u %u %u %lld %d :", name, x, y, z, block_x, block_y, block_z,
               shared, static_cast<long long>(reinterpret_cast<intptr_t>(stream)), extra != nullptr);
  for (const char* kind = std::strchr(name, '_') + 1; *kind; ++kind, ++parameters) {
    if (*kind == 'p') std::fprintf(Log(), " %lld", *static_cast<long long*>(*parameters));
    if (*kind == 'i') std::fprintf(Log(), " %d", *static_cast<int32_t*>(*parameters));
    if (*kind == 'f') std::fprintf(Log(), " %.9g", *static_cast<float*>(*parameters));
  }
  std::fprintf(Log(), "\n");
  std::fflush(Log());
  return Status("cuLaunchKernel");
}

int cuGetErrorName(int, const char** text) {
  *text = "CUDA_ERROR_NO_BINARY_FOR_GPU";
  return 0;
}

int cuGetErrorString(int, const char** text) {
  *text = "no kernel image is available for execution on the device";
  return 0;
}

}  // extern "C"
