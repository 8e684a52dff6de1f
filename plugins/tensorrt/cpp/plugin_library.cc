// The entry points that TensorRT looks for when it loads a library of plugins: for IPluginRegistry::loadLibrary
// (trtexec --dynamicPlugins) and for a plan that holds the library (`plugins_to_serialize`; Triton opens one with
// --backend-config=tensorrt,version-compatible=true). Nothing registers itself when the library is merely opened
// (trtexec --staticPlugins, Triton's plugins=): TensorRT refuses to load a library whose plugin is there already.

#include "tensorrt/cpp/creator.h"
#include "tensorrt/cpp/log.h"

#define KVFOLD_EXPORT extern "C" __attribute__((visibility("default")))

KVFOLD_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { kvfold::tensorrt::set_logger_finder(finder); }

KVFOLD_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static kvfold::tensorrt::Creator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}
