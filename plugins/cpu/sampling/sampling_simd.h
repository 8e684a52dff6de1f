// The passes over a row, written once over a small vector layer. Each instruction set's file includes it
// inside its own anonymous namespace, after defining
//   Simd      kLanes floats and their arithmetic, as exponential2.h asks for it, and
//     unordered(a, b)           all ones where a or b is a NaN
//     keep_at_least(x, least)   x, 0 where it is less
//     choose(x, bits)           x, -inf where a lane's bit is not set
//     reaches(x, least)         a bit for each lane of at least `least`
//     compress(x, bits, out)    stores the lanes whose bit is set side by side, and may write a vector more
//     places(bits, first, out)  the same of first + a lane's number
//   Doubles   a sum of vectors in float64: zero(), add(sum, F), total(sum)

#include "cpu/exponential2.h"

constexpr std::size_t kVectors = kBlock / Simd::kLanes;
constexpr std::size_t kLaneSets = kPeaks / Simd::kLanes;
constexpr std::size_t kTogether = 8;  // vectors that are added up in float32, before float64

// One block of a row: x itself, or a padded copy of what is left of it.
struct Block {
  alignas(64) float padded[kBlock];

  const float* of(const float* x, std::size_t count, std::size_t first) {
    if (first + kBlock <= count) return x + first;
    for (std::size_t i = 0; i < kBlock; ++i) padded[i] = first + i < count ? x[first + i] : -__builtin_inff();
    return padded;
  }
};

Survey survey(const float* x, std::size_t count, float* peaks) {
  Block block;
  F nan = Simd::set(0.0f), max = Simd::set(-__builtin_inff());
  for (std::size_t first = 0; first < count; first += kBlock, peaks += kPeaks) {
    const float* p = block.of(x, count, first);
    F tops[kLaneSets];
    for (F& top : tops) top = Simd::set(-__builtin_inff());
    for (std::size_t i = 0; i < kVectors; i += 4) {
      for (std::size_t j = 0; j < 4; j += 2) {
        const F value = Simd::load(p + (i + j) * Simd::kLanes), next = Simd::load(p + (i + j + 1) * Simd::kLanes);
        nan = Simd::either(nan, Simd::unordered(value, next));
        tops[j % kLaneSets] = Simd::max(tops[j % kLaneSets], value);
        tops[(j + 1) % kLaneSets] = Simd::max(tops[(j + 1) % kLaneSets], next);
      }
    }
    for (std::size_t lane = 0; lane < kLaneSets; ++lane) {
      Simd::store(peaks + lane * Simd::kLanes, tops[lane]);
      max = Simd::max(max, tops[lane]);
    }
  }
  return {Simd::max_lane(max), Simd::any(nan)};
}

void mask(const float* x, std::size_t count, const std::uint32_t* mask, float* out) {
  Block block;
  for (std::size_t first = 0; first < count; first += kBlock) {
    const float* p = block.of(x, count, first);
    for (std::size_t i = 0; i < kBlock; i += Simd::kLanes) {
      const std::size_t at = first + i;
      const std::uint32_t bits = at < count ? mask[at / 32] >> (at % 32) : 0;
      Simd::store(out + at, Simd::choose(Simd::load(p + i), bits));
    }
  }
}

template <bool kAll>
double weigh_blocks(const float* x, std::size_t count, const Weighing& weighing, float* weights, double* sums) {
  Block block;
  const F max = Simd::set(weighing.max), factor = Simd::set(weighing.factor), least = Simd::set(weighing.least);
  double all = 0;
  for (std::size_t first = 0; first < count; first += kBlock, weights += kBlock) {
    const float* p = block.of(x, count, first);
    auto sum = Doubles::zero();
    for (std::size_t i = 0; i < kBlock; i += kTogether * Simd::kLanes) {
      F together = Simd::set(0.0f);
      for (std::size_t j = 0; j < kTogether; ++j) {
        const std::size_t at = i + j * Simd::kLanes;
        F weight = exponential2(Simd::mul(Simd::sub(Simd::load(p + at), max), factor));
        if (!kAll) weight = Simd::keep_at_least(weight, least);
        Simd::store(weights + at, weight);
        together = Simd::add(together, weight);
      }
      sum = Doubles::add(sum, together);
    }
    all += *sums++ = Doubles::total(sum);
  }
  return all;
}

double weigh(const float* x, std::size_t count, const Weighing& weighing, float* weights, double* sums) {
  return weighing.least > 0 ? weigh_blocks<false>(x, count, weighing, weights, sums)
                            : weigh_blocks<true>(x, count, weighing, weights, sums);
}

template <bool kAllAbove>
std::size_t gather_blocks(const float* x, std::size_t count, const float* peaks, Range range, std::int32_t* ids,
                          float* values) {
  Block block;
  const F least = Simd::set(range.least), most = Simd::set(range.most);
  std::size_t found = 0;
  for (std::size_t first = 0; first < count; first += kBlock) {
    if (peaks != nullptr) {
      std::uint32_t any = 0;
      for (std::size_t i = 0; i < kPeaks; i += Simd::kLanes) any |= Simd::reaches(Simd::load(peaks + i), least);
      peaks += kPeaks;
      if (any == 0) continue;
    }
    const float* p = block.of(x, count, first);
    for (std::size_t i = 0; i < kBlock; i += Simd::kLanes) {
      const F value = Simd::load(p + i);
      std::uint32_t bits = Simd::reaches(value, least);
      if (!kAllAbove) bits &= Simd::reaches(most, value);
      Simd::places(bits, static_cast<std::int32_t>(first + i), ids + found);
      Simd::compress(value, bits, values + found);
      found += static_cast<std::size_t>(__builtin_popcount(bits));
    }
  }
  return found;
}

std::size_t gather(const float* x, std::size_t count, const float* peaks, Range range, std::int32_t* ids,
                   float* values) {
  return range.most < __builtin_inff() ? gather_blocks<false>(x, count, peaks, range, ids, values)
                                       : gather_blocks<true>(x, count, peaks, range, ids, values);
}

// Plain C++: compilers vectorise it for each instruction set.
void distribute(const float* x, std::size_t count, Scale scale, std::uint8_t* buckets) {
  for (std::size_t i = 0; i < count; ++i) {
    const auto bucket = static_cast<std::int32_t>((scale.most - x[i]) * scale.scale);
    buckets[i] = static_cast<std::uint8_t>(bucket < static_cast<std::int32_t>(kBuckets) ? bucket : kBuckets - 1);
  }
}

Extent extent(const float* x, std::size_t count, Scale scale, std::size_t bucket) {
  Block block;
  const F top = Simd::set(scale.most), factor = Simd::set(scale.scale), none = Simd::set(-__builtin_inff());
  const F begin = Simd::set(static_cast<float>(bucket));
  const F end = Simd::set(bucket + 1 < kBuckets ? static_cast<float>(bucket + 1) : __builtin_inff());
  F most = none, below = none;  // the largest -x
  std::size_t found = 0;
  for (std::size_t first = 0; first < count; first += kBlock) {
    const float* p = block.of(x, count, first);
    for (std::size_t i = 0; i < kBlock; i += Simd::kLanes) {
      const F value = Simd::load(p + i), at = Simd::mul(Simd::sub(top, value), factor);
      const std::uint32_t bits = Simd::reaches(at, begin) & ~Simd::reaches(at, end);
      found += static_cast<std::size_t>(__builtin_popcount(bits));
      most = Simd::max(most, Simd::choose(value, bits));
      below = Simd::max(below, Simd::choose(Simd::sub(Simd::set(0.0f), value), bits));
    }
  }
  return {found, {-Simd::max_lane(below), Simd::max_lane(most)}};
}
