// Tokens that may belong to the nucleus are distributed over buckets by their logits. Only two buckets are
// looked into: the one in which the nucleus ends, and the one that the draw falls on.
#include "cpu/sampling/nucleus.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace kvfold {
namespace {

constexpr std::size_t kOneBucket = 256;  // as many need no distribution
constexpr std::ptrdiff_t kFew = 24;      // as many members of a bucket are sorted
constexpr double kSlack = 1e-5;          // far more than logits and weights are rounded by

// A sample of the weights of each block says which are large enough. It only saves time: where it misled, the
// limit that cannot be wrong is taken.
constexpr std::size_t kSampled = 8, kWorthSampling = 16 * kBlock;
constexpr int kBisections = 6;
constexpr double kCaution = 0.85;

double sum_below(const std::vector<float>& sample, float limit) {
  float sums[kSampled] = {};
  for (std::size_t i = 0; i < sample.size(); i += kSampled) {
    for (std::size_t j = 0; j < kSampled; ++j) sums[j] += sample[i + j] < limit ? sample[i + j] : 0;
  }
  double sum = 0;
  for (float each : sums) sum += each;
  return sum;
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

// Moves the keys below a pivot to the front; both sides get some of three or more different ones.
std::uint64_t* split(std::uint64_t* begin, std::uint64_t* end) {
  const std::uint64_t a = *begin, b = begin[(end - begin) / 2], c = end[-1];
  const std::uint64_t pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
  std::uint64_t* middle = begin;
  for (std::uint64_t* key = begin; key < end; ++key) {  // without a branch that nobody can predict
    const std::uint64_t moved = *key;
    *key = *middle;
    *middle = moved;
    middle += moved < pivot;
  }
  return middle;
}

}  // namespace

// A weight, at least `limit`, below which all together have, to all appearance, less than `spare`.
double Nucleus::guess(const float* weights, std::size_t count, double limit, double spare) {
  sample_.clear();
  for (std::size_t i = 0; i + kBlock <= count; i += kBlock) {
    sample_.insert(sample_.end(), weights + i, weights + i + kSampled);
  }
  const double wanted = kCaution * spare * kSampled / kBlock;
  double high = 1;
  for (int step = 0; step < kBisections; ++step) {
    const double middle = std::sqrt(limit * high);
    (sum_below(sample_, static_cast<float>(middle)) < wanted ? limit : high) = middle;
  }
  return limit;
}

// By log1p, as glibc's log2 is a newer symbol than the wheel's manylinux_2_28 may ask for; exact before it.
double log2_of(double x) {
  int exponent = 0;
  const double fraction = std::frexp(x, &exponent);
  return exponent + std::log1p(fraction - 1) / std::log1p(1);
}

// Takes the tokens of at least a weight, and distributes them; returns the mass of what weighing.least leaves.
double Nucleus::distribute(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing, double limit) {
  const double below = log2_of(limit) / weighing.factor;
  const double slack = kSlack * (std::fabs(below) + std::fabs(weighing.max) + 1 / weighing.factor);
  const auto least = static_cast<float>(std::max(weighing.max + below - slack, static_cast<double>(-FLT_MAX)));
  candidates_ = gathered_.at_least(kernel, row, least);
  const std::size_t count = candidates_.count, blocks = blocks_of(count);
  float* weights = grown(weights_, blocks * kBlock);
  const double mass = kernel.weigh(candidates_.logits, count, weighing, weights, grown(sums_, blocks));
  std::uint8_t* buckets = grown(buckets_, count);
  const float scale = count <= kOneBucket ? 0 : kBuckets / (weighing.max - least);
  kernel.distribute(candidates_.logits, count, weighing.max, scale, buckets);
  add_masses(buckets, weights, count, masses_);
  return mass;
}

// The members of a bucket that have a weight, as keys; returns how many.
std::size_t Nucleus::collect(std::size_t bucket) {
  std::uint64_t* members = grown(members_, candidates_.count);
  std::size_t count = 0;
  const std::uint8_t *begin = buckets_.data(), *end = begin + candidates_.count, *at = begin;
  while ((at = static_cast<const std::uint8_t*>(std::memchr(at, static_cast<int>(bucket), end - at))) != nullptr) {
    const auto place = static_cast<std::size_t>(at++ - begin);
    members[count] = order_key(candidates_.logits[place], place);
    count += weights_[place] > 0;
  }
  return count;
}

// The place with which, likeliest first, the sum of weights passes `wanted`, and that sum; where they do not
// suffice, or rounding leaves them short, the last place of those looked at.
Nucleus::Passing Nucleus::pass(double wanted) {
  double sum = 0;
  std::size_t bucket = 0;
  while (bucket + 1 < kBuckets && sum + masses_[bucket] <= wanted) sum += masses_[bucket++];
  const std::size_t count = collect(bucket);
  std::uint64_t *begin = members_.data(), *end = begin + count;
  while (end - begin > kFew) {
    std::uint64_t* middle = split(begin, end);
    double before = 0;
    for (const std::uint64_t* key = begin; key < middle; ++key) before += weights_[place_of(*key)];
    if (sum + before > wanted) {
      end = middle;
    } else {
      begin = middle;
      sum += before;
    }
  }
  std::sort(begin, end);
  Passing found = {sum, 0};
  for (; begin < end && found.sum <= wanted; ++begin) {
    found.place = place_of(*begin);
    found.sum += weights_[found.place];
  }
  return found;
}

std::size_t Nucleus::draw(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing,
                          const float* weights, double mass, const NucleusDraw& draw) {
  // All weights below spare / count together have less than `spare`.
  const double spare = (1 - draw.top_p) * mass, target = draw.top_p * mass;
  const double safe = std::max(spare / static_cast<double>(row.count), static_cast<double>(draw.min_p));
  const double limit = row.count < kWorthSampling ? safe : guess(weights, row.count, safe, spare);
  const Weighing left = {weighing.max, weighing.factor, draw.min_p};
  if (distribute(kernel, row, left, limit) < target && limit > safe) distribute(kernel, row, left, safe);

  // The nucleus ends with the token that brings the sum to the target; the draw is a share of that sum.
  const double kept = pass(std::nextafter(target, 0.0)).sum;
  const Passing drawn = pass(std::min(draw.share * kept, std::nextafter(kept, 0.0)));
  return static_cast<std::size_t>(candidates_.ids[drawn.place]);
}

}  // namespace kvfold
