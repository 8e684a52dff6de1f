// Stands in for libcuda.so.1 where kernels run on the host: what is launched goes to a function of the test's.
//
// A module is the bytes that it was loaded from, a function the name of its entry point.

#include <cstdlib>
#include <cstring>

using Launched = void (*)(const char* symbol, unsigned x, unsigned y, unsigned z, void* stream, void** parameters);

namespace {

Launched g_launched = nullptr;
int g_architecture = 0;
int g_loaded = 0;

}  // namespace

extern "C" {

void host_cuda_start(Launched launched, int architecture) {
  g_launched = launched;
  g_architecture = architecture;
}

int host_cuda_loaded() { return g_loaded; }

int cuCtxGetCurrent(void** context) {
  *context = &g_architecture;
  return 0;
}

int cuCtxGetId(void*, unsigned long long* id) {
  *id = 1;
  return 0;
}

int cuCtxGetDevice(int* device) {
  *device = 0;
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? g_architecture / 10 : g_architecture % 10;
  return 0;
}

int cuModuleLoadData(void** module, const void* image) {
  *module = const_cast<void*>(image);
  ++g_loaded;
  return 0;
}

int cuModuleGetFunction(void** function, void*, const char* symbol) {
  *function = strdup(symbol);
  return 0;
}

int cuFuncSetAttribute(void*, int, int) { return 0; }

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned, unsigned, unsigned, unsigned,
                   void* stream, void** parameters, void**) {
  g_launched(static_cast<const char*>(function), x, y, z, stream, parameters);
  return 0;
}

int cuGetErrorName(int, const char** text) {
  *text = "";
  return 1;
}

int cuGetErrorString(int, const char** text) {
  *text = "";
  return 1;
}

}  // extern "C"
