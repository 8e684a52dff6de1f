#include "cpu/sampling/likeliest.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace kvfold {
namespace {

constexpr std::size_t kBehindPeak = kBlock / kPeaks;
constexpr std::size_t kHeapSize = 64;  // up to here a heap finds the k-th largest sooner than partitioning

}  // namespace

Candidates Gathered::within(const SamplingKernel& kernel, const Logits& row, Range range) {
  const std::size_t room = (blocks_of(row.count) + 1) * kBlock;  // stores of whole vectors go beyond the last
  Candidates found = {grown(ids_, room), grown(logits_, room), 0};
  found.count = kernel.gather(row.values, row.count, row.peaks, range, found.ids, found.logits);
  while (found.count > 0 && static_cast<std::size_t>(found.ids[found.count - 1]) >= row.count) --found.count;
  return found;
}

// The `wanted`-th largest peak: as many logits are at least as large.
float Likeliest::threshold(const Logits& row, std::size_t wanted) {
  const std::size_t size = blocks_of(row.count) * kPeaks;
  if (wanted > size) return -HUGE_VALF;
  float* peaks = grown(peaks_, size);
  std::copy(row.peaks, row.peaks + size, peaks);
  if (wanted <= kHeapSize) {
    std::partial_sort(peaks, peaks + wanted, peaks + size, std::greater<float>());
  } else {
    std::nth_element(peaks, peaks + wanted - 1, peaks + size, std::greater<float>());
  }
  return peaks[wanted - 1];
}

// The `wanted` likeliest, where those above the least ones are fewer: of the least, the first.
Candidates Likeliest::first_of(Candidates found, const Candidates& above, std::size_t wanted) {
  std::size_t kept = 0, passed = 0;
  for (; kept + (above.count - passed) < wanted; ++kept) {
    passed += passed < above.count && above.ids[passed] == found.ids[kept];
  }
  std::copy(above.ids + passed, above.ids + above.count, found.ids + kept);
  std::copy(above.logits + passed, above.logits + above.count, found.logits + kept);
  found.count = wanted;
  return found;
}

Candidates Likeliest::of(const SamplingKernel& kernel, const Logits& row, std::size_t wanted) {
  const float least = threshold(row, wanted);
  Candidates found = gathered_.at_least(kernel, row, least);
  if (found.count > wanted * kBehindPeak) {
    // Fewer than `wanted` peaks are larger than that one: most of these are equal.
    const Candidates above = above_.at_least(kernel, row, std::nextafter(least, HUGE_VALF));
    if (above.count < wanted) return first_of(found, above, wanted);
    found = above;
  }
  if (found.count == wanted) return found;
  std::uint64_t* keys = grown(keys_, found.count);
  for (std::size_t i = 0; i < found.count; ++i) keys[i] = order_key(found.logits[i], i);
  std::nth_element(keys, keys + wanted - 1, keys + found.count);
  const std::uint64_t last = keys[wanted - 1];
  std::size_t kept = 0;
  for (std::size_t i = 0; i < found.count; ++i) {
    if (order_key(found.logits[i], i) > last) continue;
    found.ids[kept] = found.ids[i];
    found.logits[kept++] = found.logits[i];
  }
  found.count = kept;
  return found;
}

}  // namespace kvfold
