// The smallest set of likeliest tokens with a share of the mass, and the one of them that a draw falls on.
#pragma once

#include "cpu/sampling/likeliest.h"

namespace kvfold {

struct NucleusDraw {
  double top_p;  // less than 1
  float min_p;   // less likely ones, relative to the likeliest, are left out
  double share;  // the draw, in [0, 1)
};

class Nucleus {
 public:
  // The index of the drawn one; `mass` is the sum of all weights.
  std::size_t draw(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing, double mass,
                   const NucleusDraw& draw);

 private:
  std::size_t collect(std::size_t bucket, const Candidates& candidates);
  std::size_t pick(std::size_t members, double sum, double wanted) const;

  Gathered gathered_;
  std::vector<float> weights_;
  std::vector<double> sums_;
  std::vector<std::uint8_t> buckets_;
  std::vector<std::uint64_t> members_;
};

}  // namespace kvfold
