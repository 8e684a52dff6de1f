#include "cuda/cpp/text.h"

#include <cstdio>
#include <cstdlib>

namespace kvfold::cuda {

std::string python_float(double value) {
  char digits[32] = "";
  for (int precision = 1; precision <= 17; ++precision) {
    std::snprintf(digits, sizeof digits, "%.*g", precision, value);
    if (std::strtod(digits, nullptr) == value) break;
  }
  const std::string shortest = digits;
  const bool whole = shortest.find_first_not_of("-0123456789") == std::string::npos;
  return whole ? shortest + ".0" : shortest;
}

}  // namespace kvfold::cuda
