// Tokens are distributed over buckets by their logits, each with its mass. Only two buckets are ever sorted:
// the one in which the nucleus ends, and the one that the draw falls on.
#include "cpu/sampling/nucleus.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

namespace kvfold {
namespace {

constexpr std::size_t kOneBucket = 256;  // as many are sorted at once
constexpr double kSlack = 1e-5;          // far more than logits and weights are rounded by

// A logit below which no weight can matter: all weights below (1 - top_p) * mass / count together have less
// than a share of 1 - top_p, and min_p leaves out what is below it.
float lowest(const Logits& row, const Weighing& weighing, double mass, const NucleusDraw& draw) {
  const double share = (1 - draw.top_p) * mass / static_cast<double>(row.count);
  const double below = std::log2(std::max(share, static_cast<double>(draw.min_p))) / weighing.factor;
  const double slack = kSlack * (std::fabs(below) + std::fabs(weighing.max) + 1 / weighing.factor);
  return static_cast<float>(std::max(weighing.max + below - slack, static_cast<double>(-FLT_MAX)));
}

void add_masses(const std::uint8_t* buckets, const float* weights, std::size_t count, double* masses) {
  constexpr std::size_t kWays = 4;  // neighbours often share a bucket, and would wait for each other
  double ways[kWays][kBuckets] = {};
  std::size_t i = 0;
  for (; i + kWays <= count; i += kWays) {
    for (std::size_t way = 0; way < kWays; ++way) ways[way][buckets[i + way]] += weights[i + way];
  }
  for (; i < count; ++i) ways[0][buckets[i]] += weights[i];
  for (std::size_t b = 0; b < kBuckets; ++b) masses[b] = (ways[0][b] + ways[1][b]) + (ways[2][b] + ways[3][b]);
}

}  // namespace

// The members of a bucket, likeliest first; returns how many.
std::size_t Nucleus::collect(std::size_t bucket, const Candidates& candidates) {
  std::uint64_t* members = grown(members_, candidates.count);
  std::size_t count = 0;
  const std::uint8_t *begin = buckets_.data(), *end = begin + candidates.count, *at = begin;
  while ((at = static_cast<const std::uint8_t*>(std::memchr(at, static_cast<int>(bucket), end - at))) != nullptr) {
    const auto place = static_cast<std::size_t>(at++ - begin);
    members[count++] = order_key(candidates.logits[place], place);
  }
  if (!std::is_sorted(members, members + count)) std::sort(members, members + count);
  return count;
}

// The place at which the sum passes `wanted`; the last one with a weight where rounding leaves it short.
std::size_t Nucleus::pick(std::size_t members, double sum, double wanted) const {
  std::size_t picked = 0;
  for (std::size_t i = 0; i < members && sum <= wanted; ++i) {
    const std::size_t place = place_of(members_[i]);
    if (weights_[place] > 0) picked = place;
    sum += weights_[place];
  }
  return picked;
}

std::size_t Nucleus::draw(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing, double mass,
                          const NucleusDraw& draw) {
  const float least = lowest(row, weighing, mass, draw);
  const Candidates candidates = gathered_.at_least(kernel, row, least);
  const std::size_t blocks = blocks_of(candidates.count);
  float* weights = grown(weights_, blocks * kBlock);
  kernel.weigh(candidates.logits, candidates.count, {weighing.max, weighing.factor, draw.min_p}, weights,
               grown(sums_, blocks));
  std::uint8_t* buckets = grown(buckets_, candidates.count);
  const float scale = candidates.count <= kOneBucket ? 0 : kBuckets / (weighing.max - least);
  kernel.distribute(candidates.logits, candidates.count, weighing.max, scale, buckets);
  double masses[kBuckets];
  add_masses(buckets, weights, candidates.count, masses);

  const double target = draw.top_p * mass;
  std::size_t last = 0;
  double kept = 0;
  while (last + 1 < kBuckets && kept + masses[last] < target) kept += masses[last++];
  std::size_t members = collect(last, candidates), ends = 0;
  while (ends < members && kept < target) kept += weights[place_of(members_[ends++])];

  const double wanted = std::min(draw.share * kept, std::nextafter(kept, 0.0));
  std::size_t bucket = 0;
  double sum = 0;
  while (bucket < last && sum + masses[bucket] <= wanted) sum += masses[bucket++];
  members = bucket == last ? ends : collect(bucket, candidates);
  return static_cast<std::size_t>(candidates.ids[pick(members, sum, wanted)]);
}

}  // namespace kvfold
