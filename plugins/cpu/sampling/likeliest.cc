#include "cpu/sampling/likeliest.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace kvfold {
namespace {

constexpr std::size_t kHeapSize = 64;  // up to here a heap finds the k-th largest sooner than partitioning

}  // namespace

Candidates Gathered::at_least(const SamplingKernel& kernel, const Logits& row, float least) {
  const std::size_t room = (blocks_of(row.count) + 1) * kBlock;  // stores of whole vectors go beyond the last
  Candidates found = {grown(ids_, room), grown(logits_, room), 0};
  found.count = kernel.gather(row.values, row.count, row.peaks, least, found.ids, found.logits);
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

Candidates Likeliest::of(const SamplingKernel& kernel, const Logits& row, std::size_t wanted) {
  Candidates found = gathered_.at_least(kernel, row, threshold(row, wanted));
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
