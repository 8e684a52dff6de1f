// Error messages: parts joined to a string, with Python's spelling of values where both plugins say the same.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace kvfold::cuda {

// An attention node, its tensors or its kernels break the contract; the message says which, and the value.
class KernelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A stream by the constructor that libstdc++ has always had: the one without arguments is too new for our wheel.
inline std::ostringstream string_stream() { return std::ostringstream(std::ios_base::out); }

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream = string_stream();
  (stream << ... << parts);
  return stream.str();
}

template <typename Range>
std::string join(const Range& parts) {
  std::ostringstream stream = string_stream();
  const char* separator = "";
  for (const auto& part : parts) {
    stream << separator << part;
    separator = ", ";
  }
  return stream.str();
}

// A float as Python prints it: the shortest digits that give it back, never without a point.
std::string python_float(double value);

}  // namespace kvfold::cuda
