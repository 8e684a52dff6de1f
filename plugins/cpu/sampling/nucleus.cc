// Tokens that may belong to the nucleus are distributed over buckets by their logits. Only two buckets are
// looked into: the one in which the nucleus ends, and the one that the draw falls on.
#include "cpu/sampling/nucleus.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace kvfold {
namespace {

constexpr std::size_t kOneBucket = 256;    // as many need no distribution
constexpr std::size_t kSelected = 1024;    // among as many members of a bucket a place is found one by one
constexpr std::ptrdiff_t kSorted = 24;     // as many are sorted
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
  constexpr std::size_t kWays = 8;  // neighbours often share a bucket, and would wait for each other
  double ways[kWays][kBuckets] = {};
  std::size_t i = 0;
  for (; i + kWays <= count; i += kWays) {
    for (std::size_t way = 0; way < kWays; ++way) ways[way][buckets[i + way]] += weights[i + way];
  }
  for (; i < count; ++i) ways[0][buckets[i]] += weights[i];
  for (std::size_t b = 0; b < kBuckets; ++b) {
    masses[b] = 0;
    for (std::size_t way = 0; way < kWays; ++way) masses[b] += ways[way][b];
  }
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

// Few logits, or some that are too close or too far apart to be told apart like this, share one bucket.
float scale_of(Range range, std::size_t count) {
  const float scale = kBuckets / (range.most - range.least);
  return count > kOneBucket && scale > 0 && scale <= FLT_MAX ? scale : 0;
}

// Takes the logits of a range; returns the mass of what weighing.least leaves.
double Nucleus::Spread::fill(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing, Range range) {
  candidates = gathered.within(kernel, row, range);
  const std::size_t count = candidates.count, blocks = blocks_of(count);
  float* weight = grown(weights, blocks * kBlock);
  const double mass = kernel.weigh(candidates.logits, count, weighing, weight, grown(sums, blocks));
  range.most = std::min(range.most, weighing.max);
  scale = {range.most, scale_of(range, count)};
  std::uint8_t* bucket = grown(buckets, count);
  kernel.distribute(candidates.logits, count, scale, bucket);
  add_masses(bucket, weight, count, masses);
  return mass;
}

// The bucket with which the sum passes `wanted`, the last one with a mass at most; adds those before it.
std::size_t Nucleus::Spread::find(double wanted, double* sum) const {
  std::size_t bucket = 0, last = kBuckets - 1;
  while (last > 0 && !(masses[last] > 0)) --last;
  while (bucket < last && *sum + masses[bucket] <= wanted) *sum += masses[bucket++];
  return bucket;
}

// Spreads the tokens of at least a weight.
double Nucleus::spread_from(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing, double limit) {
  const double below = log2_of(limit) / weighing.factor;
  const double slack = kSlack * (std::fabs(below) + std::fabs(weighing.max) + 1 / weighing.factor);
  const auto least = static_cast<float>(std::max(weighing.max + below - slack, static_cast<double>(-FLT_MAX)));
  return all_.fill(kernel, row, weighing, {least, HUGE_VALF});
}

// Takes the members of a bucket that have a weight, as keys, until there are more than `most`; returns how many.
std::size_t Nucleus::collect(const Spread& spread, std::size_t bucket, std::size_t most) {
  const std::size_t count = spread.candidates.count;
  std::uint64_t* members = grown(members_, count);
  std::size_t found = 0;
  const std::uint8_t *begin = spread.buckets.data(), *end = begin + count, *at = begin;
  while (found <= most &&
         (at = static_cast<const std::uint8_t*>(std::memchr(at, static_cast<int>(bucket), end - at))) != nullptr) {
    const auto place = static_cast<std::size_t>(at++ - begin);
    members[found] = order_key(spread.candidates.logits[place], place);
    found += spread.weights[place] > 0;
  }
  return found;
}

// The same as pass, among members.
Nucleus::Passing Nucleus::pass_members(const Spread& spread, std::size_t count, double sum, double wanted) {
  std::uint64_t *begin = members_.data(), *end = begin + count;
  while (end - begin > kSorted) {
    std::uint64_t* middle = split(begin, end);
    double before = 0;
    for (const std::uint64_t* key = begin; key < middle; ++key) before += spread.weights[place_of(*key)];
    if (sum + before > wanted) {
      end = middle;
    } else {
      begin = middle;
      sum += before;
    }
  }
  std::sort(begin, end);
  Passing found = {sum, spread.candidates.ids[0]};
  for (; begin < end && found.sum <= wanted; ++begin) {
    found.id = spread.candidates.ids[place_of(*begin)];
    found.sum += spread.weights[place_of(*begin)];
  }
  return found;
}

// The token with which, likeliest first, the sum of weights passes `wanted`, and that sum; where they do not
// suffice, or rounding leaves them short, the last token of those looked at.
Nucleus::Passing Nucleus::pass(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing,
                               double wanted) {
  double sum = 0;
  for (const Spread* spread = &all_;; spread = &part_) {
    const std::size_t bucket = spread->find(wanted, &sum);
    const std::size_t few = collect(*spread, bucket, kSelected);
    if (few <= kSelected) return pass_members(*spread, few, sum, wanted);
    const Extent in = kernel.extent(spread->candidates.logits, spread->candidates.count, spread->scale, bucket);
    if (in.range.least == in.range.most) {
      const double weight = spread->masses[bucket] / static_cast<double>(in.count);
      const double before = std::min(std::floor((wanted - sum) / weight), static_cast<double>(in.count - 1));
      const Candidates equal = equal_.within(kernel, row, in.range);
      return {sum + (before + 1) * weight, equal.ids[static_cast<std::size_t>(before)]};
    }
    if (scale_of(in.range, in.count) == 0) {
      return pass_members(*spread, collect(*spread, bucket, in.count), sum, wanted);
    }
    part_.fill(kernel, row, weighing, in.range);
  }
}

std::size_t Nucleus::draw(const SamplingKernel& kernel, const Logits& row, const Weighing& weighing,
                          const float* weights, double mass, const NucleusDraw& draw) {
  // All weights below spare / count together have less than `spare`.
  const double spare = (1 - draw.top_p) * mass, target = draw.top_p * mass;
  const double safe = std::max(spare / static_cast<double>(row.count), static_cast<double>(draw.min_p));
  const double limit = row.count < kWorthSampling ? safe : guess(weights, row.count, safe, spare);
  const Weighing left = {weighing.max, weighing.factor, draw.min_p};
  if (spread_from(kernel, row, left, limit) < target && limit > safe) spread_from(kernel, row, left, safe);

  // The nucleus ends with the token that brings the sum to the target; the draw is a share of that sum.
  const double kept = pass(kernel, row, left, std::nextafter(target, 0.0)).sum;
  return static_cast<std::size_t>(
      pass(kernel, row, left, std::min(draw.share * kept, std::nextafter(kept, 0.0))).id);
}

}  // namespace kvfold
