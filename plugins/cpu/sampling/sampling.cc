// Sampling's orchestration: one row after the other, each by itself. Order of a row: survey, log
// probabilities, mask and bias and penalties on a copy, then the choice.
#include "cpu/sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "cpu/sampling/nucleus.h"

namespace kvfold {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr double kLog2E = 1.4426950408889634074;

enum Status : std::int32_t { kSampled = 0, kNotFinite = 1, kNothingAllowed = 2 };  // schema.py: Status

const SamplingKernel& active_kernel() {
#if defined(__x86_64__)
  static const SamplingKernel* const kernels[] = {&kSamplingPortable, &kSamplingAvx2, &kSamplingAvx512};
  static_assert(sizeof kernels / sizeof *kernels == kIsaCount, "one for each instruction set");
  return *kernels[static_cast<int>(active_isa())];
#else
  return kSamplingPortable;
#endif
}

// The memory of one thread.
struct Scratch {
  std::vector<float> peaks, edited, edited_peaks, weights;
  std::vector<double> sums;
  std::vector<std::uint64_t> keys;
  Gathered greatest;
  Likeliest likeliest;
  Nucleus nucleus;
};

// A surveyed row.
struct Row {
  Logits logits;
  float max;
};

class Sampler {
 public:
  Sampler(const SamplingKernel& kernel, Scratch& scratch) : kernel_(kernel), scratch_(scratch) {}

  // Surveys a row; false where its largest logit is no number.
  bool survey(const float* x, std::size_t count, std::vector<float>& peaks, Row* row) const {
    float* own = grown(peaks, blocks_of(count) * kPeaks);
    const Survey found = kernel_.survey(x, count, own);
    *row = {{x, count, own}, found.max};
    return !found.has_nan && std::isfinite(found.max);
  }

  // log(sum(exp(x))), and the `wanted` likeliest tokens with their log probabilities.
  double tell(const Row& row, std::int32_t wanted, std::int32_t* ids, double* logprobs) const {
    // The mass is at least 1, and log1p is an older symbol of glibc than log.
    const double mass = weigh(row.logits, {row.max, static_cast<float>(kLog2E), 0});
    const double log_mass = row.max + std::log1p(mass - 1);
    const std::size_t limit = std::min(static_cast<std::size_t>(wanted), row.logits.count);
    if (limit == 0) return log_mass;
    const Candidates likely = scratch_.likeliest.of(kernel_, row.logits, limit);
    std::uint64_t* keys = grown(scratch_.keys, limit);
    for (std::size_t i = 0; i < limit; ++i) keys[i] = order_key(likely.logits[i], i);
    std::sort(keys, keys + limit);
    for (std::size_t i = 0; i < limit; ++i) {
      const std::size_t place = place_of(keys[i]);
      ids[i] = likely.ids[place];
      logprobs[i] = likely.logits[place] - log_mass;
    }
    return log_mass;
  }

  // A copy of the row as its mask, bias, penalties and bans have it.
  const float* edit(const Logits& row, const SamplingRow& params) const {
    const std::size_t padded = blocks_of(row.count) * kBlock;
    float* x = grown(scratch_.edited, padded);
    if (params.mask != nullptr) {
      kernel_.mask(row.values, row.count, params.mask, x);
    } else {
      std::memcpy(x, row.values, row.count * sizeof *x);
    }
    for (std::int32_t i = 0; i < params.bias_count; ++i) x[params.bias_ids[i]] += params.bias_values[i];
    for (std::int32_t i = 0; i < params.seen_count; ++i) {
      float& logit = x[params.seen_ids[i]];
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      const auto count = static_cast<float>(params.seen_counts[i]);
      logit -= params.frequency_penalty * count;
      if (count > 0) logit -= params.presence_penalty;
    }
    for (std::int32_t i = 0; i < params.banned_count; ++i) x[params.banned_ids[i]] = -kInfinity;
    return x;
  }

  std::int32_t choose(const Row& row, const SamplingRow& params) const {
    if (params.temperature == 0) return first_of(row);
    const auto top_k = static_cast<std::size_t>(params.top_k);
    if (top_k == 0 || top_k >= row.logits.count) return static_cast<std::int32_t>(draw(row, params));
    const Candidates kept = scratch_.likeliest.of(kernel_, row.logits, top_k);
    return kept.ids[draw({{kept.logits, kept.count, nullptr}, row.max}, params)];
  }

 private:
  std::int32_t first_of(const Row& row) const {
    return scratch_.greatest.at_least(kernel_, row.logits, row.max).ids[0];
  }

  double weigh(const Logits& row, const Weighing& weighing) const {
    const std::size_t blocks = blocks_of(row.count);
    return kernel_.weigh(row.values, row.count, weighing, grown(scratch_.weights, blocks * kBlock),
                         grown(scratch_.sums, blocks));
  }

  std::size_t draw(const Row& row, const SamplingRow& params) const {
    const bool all = params.top_p >= 1;
    const Weighing weighing = {row.max, static_cast<float>(kLog2E / params.temperature), all ? params.min_p : 0};
    const double mass = weigh(row.logits, weighing);
    if (all) return draw_by_index(mass, params.draw);
    return scratch_.nucleus.draw(kernel_, row.logits, weighing, scratch_.weights.data(), mass,
                                 {params.top_p, params.min_p, params.draw});
  }

  // The index at which the cumulative weights pass a share of their mass: sums of blocks say in which block
  // that is, and only this one is added up weight by weight.
  std::size_t draw_by_index(double mass, double share) const {
    const double* sums = scratch_.sums.data();
    const float* weights = scratch_.weights.data();
    const double wanted = std::min(share * mass, std::nextafter(mass, 0.0));
    std::size_t block = 0;
    double sum = 0;
    while (sum + sums[block] <= wanted) sum += sums[block++];
    // Rounding may leave a little more than the block has: then its last weight above 0 is meant.
    std::size_t picked = 0;
    for (std::size_t i = block * kBlock; i < (block + 1) * kBlock && sum <= wanted; ++i) {
      if (weights[i] > 0) picked = i;
      sum += weights[i];
    }
    return picked;
  }

  const SamplingKernel& kernel_;
  Scratch& scratch_;
};

Status sample_row(const Sampler& sampler, Scratch& scratch, const float* x, std::size_t vocab,
                  const SamplingRow& params, const SamplingResults& results, std::size_t at) {
  Row row;
  if (!sampler.survey(x, vocab, scratch.peaks, &row)) return kNotFinite;
  const std::size_t first = at * static_cast<std::size_t>(results.likely_capacity);
  double log_mass = 0;
  if (params.likely >= 0) {
    log_mass = sampler.tell(row, params.likely, results.likely_ids + first, results.likely_logprobs + first);
  }
  if (params.mask != nullptr || params.bias_count + params.seen_count + params.banned_count > 0) {
    const float* edited = sampler.edit(row.logits, params);
    if (!sampler.survey(edited, vocab, scratch.edited_peaks, &row)) {
      return row.max == -kInfinity ? kNothingAllowed : kNotFinite;
    }
  }
  const std::int32_t token = sampler.choose(row, params);
  results.tokens[at] = token;
  if (params.likely >= 0) results.logprobs[at] = x[token] - log_mass;
  return kSampled;
}

Status score_row(const Sampler& sampler, Scratch& scratch, const float* x, std::size_t vocab, std::int32_t likely,
                 const SamplingResults& results, std::size_t at) {
  Row row;
  if (!sampler.survey(x, vocab, scratch.peaks, &row)) return kNotFinite;
  const std::size_t first = at * static_cast<std::size_t>(results.likely_capacity);
  const double log_mass =
      sampler.tell(row, likely, results.likely_ids + first, results.likely_logprobs + first);
  results.logprobs[at] = x[results.tokens[at]] - log_mass;
  return kSampled;
}

// Runs each row; returns how many failed, or -1 where there was no memory.
template <typename EachRow>
std::int64_t run(std::int64_t rows, std::int32_t* status, EachRow&& each_row) {
  thread_local Scratch scratch;
  const Sampler sampler(active_kernel(), scratch);
  std::int64_t failed = 0;
  try {
    for (std::int64_t at = 0; at < rows; ++at) {
      status[at] = each_row(sampler, scratch, static_cast<std::size_t>(at));
      failed += status[at] != kSampled;
    }
  } catch (const std::bad_alloc&) {
    return -1;
  }
  return failed;
}

}  // namespace
}  // namespace kvfold

std::int32_t kvfold_sampling_layout() {
  return kvfold::kSamplingVersion * 65536 + static_cast<std::int32_t>(sizeof(kvfold::SamplingRow));
}

std::int64_t kvfold_sample(const float* logits, std::int64_t rows, std::int64_t vocab,
                           const kvfold::SamplingRow* const* params, const kvfold::SamplingResults* results) {
  const auto width = static_cast<std::size_t>(vocab);
  return kvfold::run(rows, results->status, [=](const auto& sampler, auto& scratch, std::size_t at) {
    return sample_row(sampler, scratch, logits + at * width, width, *params[at], *results, at);
  });
}

std::int64_t kvfold_score(const float* logits, std::int64_t rows, std::int64_t vocab, std::int32_t likely,
                          const kvfold::SamplingResults* results) {
  const auto width = static_cast<std::size_t>(vocab);
  return kvfold::run(rows, results->status, [=](const auto& sampler, auto& scratch, std::size_t at) {
    return score_row(sampler, scratch, logits + at * width, width, likely, *results, at);
  });
}
