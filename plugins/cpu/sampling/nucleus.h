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
  // The index of the drawn one, from all weights of the row and their sum.
  std::size_t draw(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing, const float* weights,
                   double mass, const NucleusDraw& draw);

 private:
  struct Passing {
    double sum;
    std::size_t place;
  };

  double guess(const float* weights, std::size_t count, double limit, double spare);
  double distribute(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing, double limit);
  std::size_t collect(std::size_t bucket);
  Passing pass(double wanted);

  Gathered gathered_;
  Candidates candidates_ = {};  // each has a weight and a bucket
  double masses_[kBuckets];
  std::vector<float> sample_, weights_;
  std::vector<double> sums_;
  std::vector<std::uint8_t> buckets_;
  std::vector<std::uint64_t> members_;
};

}  // namespace kvfold
