#include "tensorrt/cpp/log.h"

#include <atomic>
#include <cstdio>

namespace kvfold::tensorrt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> g_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { g_finder = finder; }

void log_error(const std::string& message) noexcept {
  nvinfer1::ILoggerFinder* const finder = g_finder;
  nvinfer1::ILogger* const logger = finder == nullptr ? nullptr : finder->findLogger();
  if (logger != nullptr) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, ("kvfold: " + message).c_str());
  } else {
    std::fprintf(stderr, "kvfold: %s\n", message.c_str());
  }
}

}  // namespace kvfold::tensorrt
