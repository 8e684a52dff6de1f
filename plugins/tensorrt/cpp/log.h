// Where errors go: TensorRT reports a failing callback in words of its own, so ours are logged first and kept.
#pragma once

#include <exception>
#include <string>

#include "cuda/cpp/text.h"
#include "tensorrt/cpp/plugin_abi.h"

namespace kvfold::tensorrt {

// TensorRT hands it over when it loads the library.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// To TensorRT's logger, or to stderr where there is none; the first is kept for `kvfold_take_error`.
void report_error(const std::string& message) noexcept;

// Runs a callback's body; an error is reported with the node's name and becomes `failure`.
template <typename Result, typename Body>
Result guarded(const std::string& node, Result failure, const Body& body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    const std::string problem = error.what();
    const bool named = problem.rfind("attention node ", 0) == 0;
    report_error(named ? problem : cuda::text("attention node ", node, ": ", problem));
    return failure;
  }
}

}  // namespace kvfold::tensorrt
