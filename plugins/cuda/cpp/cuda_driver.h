// The functions of the CUDA driver that launching takes, by the driver's own names and without its header.
#pragma once

#include <array>
#include <string>

// Outside of our namespace: CUDA's own headers name the same types.
struct CUctx_st;
struct CUmod_st;
struct CUfunc_st;
struct CUstream_st;

namespace kvfold::cuda {

using CudaStatus = int;  // CUresult; 0 is success
using CudaDevice = int;
using CudaContext = CUctx_st*;
using CudaContextId = unsigned long long;
using CudaModule = CUmod_st*;
using CudaFunction = CUfunc_st*;
using CudaStream = CUstream_st*;

// Values of cuda.h's enumerations, part of the driver's binary interface.
constexpr int kComputeCapabilityMajor = 75;
constexpr int kComputeCapabilityMinor = 76;
constexpr int kMaxDynamicSharedBytes = 8;

// Opened when first used: a machine without a GPU loads the plugin and builds with it.
struct CudaDriver {
  // Throws KernelError where there is no driver.
  CudaDriver();

  // Throws KernelError with the status in words; `what` says which kernel, and may be empty.
  void check(CudaStatus status, const char* function, const std::string& what = "") const;

  CudaStatus (*get_error_name)(CudaStatus, const char**);
  CudaStatus (*get_error_string)(CudaStatus, const char**);
  CudaStatus (*get_context)(CudaContext*);
  CudaStatus (*get_context_id)(CudaContext, CudaContextId*);
  CudaStatus (*get_device)(CudaDevice*);
  CudaStatus (*get_device_attribute)(int* value, int attribute, CudaDevice);
  CudaStatus (*load_module)(CudaModule*, const void* cubin);
  CudaStatus (*get_function)(CudaFunction*, CudaModule, const char* symbol);
  CudaStatus (*set_function_attribute)(CudaFunction, int attribute, int value);
  CudaStatus (*launch_kernel)(CudaFunction, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                              unsigned block_y, unsigned block_z, unsigned shared_bytes, CudaStream,
                              void** parameters, void** extra);
};

}  // namespace kvfold::cuda
