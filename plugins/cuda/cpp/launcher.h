// Launches kernels through the CUDA driver.
#pragma once

#include <map>
#include <mutex>
#include <utility>

#include "cuda/cpp/calls.h"
#include "cuda/cpp/cuda_driver.h"
#include "cuda/cpp/kernel_library.h"
#include "cuda/cpp/launches.h"
#include "cuda/cpp/node/attention_spec.h"

namespace kvfold::cuda {

// Each cubin is loaded once into each CUDA context, when needed or by `load_all` before: loading is not allowed
// while a CUDA graph is captured. Modules stay loaded as long as their context lives. Safe from several threads.
class Launcher {
 public:
  // The one of this process. Throws KernelError where there is no driver.
  static Launcher& shared();

  // Loads every kernel that the GPU of the current context may need; nothing where there is no context yet.
  // Throws KernelError where the driver refuses one.
  void load_all(const KernelLibrary& kernels);

  // Puts one call of the op on a stream of the current context. `kernels` live to the end of the process.
  // Throws KernelError where the GPU has no kernel or the driver refuses.
  void launch(const KernelLibrary& kernels, const AttentionSpec& spec, const Shapes& shapes, const Buffers& buffers,
              uint64_t workspace, CudaStream stream);

  // SM version of the current context's GPU. Throws KernelError where there is no context.
  int architecture();

 private:
  CudaContextId context() const;
  int architecture(CudaContextId context);
  CudaFunction function(CudaContextId context, const CompiledKernel& kernel);
  void submit(CudaFunction function, Launch& launch, CudaStream stream) const;

  const CudaDriver driver_;
  std::mutex mutex_;  // of both tables
  std::map<CudaContextId, int> architectures_;
  std::map<std::pair<CudaContextId, const CompiledKernel*>, CudaFunction> functions_;
};

}  // namespace kvfold::cuda
