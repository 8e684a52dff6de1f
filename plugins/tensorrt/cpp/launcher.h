// Launches the embedded cubins through the CUDA driver: plugins/tensorrt/launcher.py.
#pragma once

#include <map>
#include <mutex>
#include <utility>

#include "cuda/cpp/attention_spec.h"
#include "tensorrt/cpp/calls.h"
#include "cuda/cpp/cuda_driver.h"
#include "cuda/cpp/kernel_library.h"
#include "cuda/cpp/launches.h"

namespace kvfold {

// Each cubin is loaded once into each CUDA context, when needed. Loading is not allowed while a CUDA graph is
// captured: run a step once before capturing it. Modules stay loaded as long as their context lives.
class Launcher {
 public:
  explicit Launcher(const KernelLibrary& kernels) : kernels_(kernels) {}

  // Puts one call of the op on a stream of the current context; safe from several threads.
  // Throws KernelError where the GPU has no kernel or the driver refuses.
  void launch(const AttentionSpec& spec, const Shapes& shapes, const Buffers& buffers, uint64_t workspace,
              CudaStream stream);

 private:
  void submit(CudaFunction function, Launch& launch, CudaStream stream) const;
  int architecture(CudaContextId context);
  CudaFunction function(CudaContextId context, const CompiledKernel& kernel);

  const KernelLibrary& kernels_;
  const CudaDriver driver_;
  std::mutex mutex_;  // of both tables
  std::map<CudaContextId, int> architectures_;
  std::map<std::pair<CudaContextId, const CompiledKernel*>, CudaFunction> functions_;
};

}  // namespace kvfold
