#include "tensorrt/cpp/log.h"

#include <cstdio>
#include <mutex>
#include <utility>

namespace kvfold::tensorrt {
namespace {

// TensorRT calls from threads of its own.
std::mutex g_mutex;
nvinfer1::ILoggerFinder* g_finder = nullptr;
std::string g_first_error;

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_finder = finder;
}

void report_error(const std::string& message) noexcept {
  nvinfer1::ILogger* logger = nullptr;
  {
    const std::lock_guard<std::mutex> lock(g_mutex);
    if (g_first_error.empty()) g_first_error = message;
    if (g_finder != nullptr) logger = g_finder->findLogger();
  }
  if (logger != nullptr) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, ("kvfold: " + message).c_str());
  } else {
    std::fprintf(stderr, "kvfold: %s\n", message.c_str());
  }
}

}  // namespace kvfold::tensorrt

// The first error since the last call, in the words of the plugin, or null where there was none; the text lasts until
// this thread calls again.
extern "C" __attribute__((visibility("default"))) const char* kvfold_take_error() {
  thread_local std::string taken;
  const std::lock_guard<std::mutex> lock(kvfold::tensorrt::g_mutex);
  taken = std::exchange(kvfold::tensorrt::g_first_error, {});
  return taken.empty() ? nullptr : taken.c_str();
}
