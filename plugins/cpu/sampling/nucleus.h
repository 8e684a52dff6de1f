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
  // Logits of a range, each with a weight and a bucket.
  struct Spread {
    Gathered gathered;
    Candidates candidates = {};
    Scale scale = {};
    double masses[kBuckets];
    std::vector<float> weights;
    std::vector<double> sums;
    std::vector<std::uint8_t> buckets;

    double fill(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing, Range range);
    std::size_t find(double wanted, double* sum) const;
  };
  struct Passing {
    double sum;
    std::int32_t id;
  };

  double guess(const float* weights, std::size_t count, double limit, double spare);
  double spread_from(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing, double limit);
  Passing pass(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing, double wanted);
  std::size_t collect(const Spread& spread, std::size_t bucket, std::size_t most);
  Passing pass_members(const Spread& spread, std::size_t count, double sum, double wanted);

  Spread all_, part_;
  Gathered equal_;
  std::vector<float> sample_;
  std::vector<std::uint64_t> members_;
};

}  // namespace kvfold
