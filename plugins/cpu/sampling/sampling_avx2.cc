// Sampling's passes for AVX2 with FMA: 8 lanes.
#if defined(__AVX2__)

#include <immintrin.h>

#include "cpu/sampling/sampling_kernel.h"

namespace kvfold {
namespace {

// places[bits]: the numbers of the set bits, growing.
struct Places {
  std::uint32_t of[256][8] = {};

  constexpr Places() {
    for (int bits = 0; bits < 256; ++bits) {
      for (int lane = 0, next = 0; lane < 8; ++lane) {
        if (bits >> lane & 1) of[bits][next++] = static_cast<std::uint32_t>(lane);
      }
    }
  }
};

alignas(32) constexpr Places kPlaces;

struct Simd {
  using F = __m256;
  static constexpr std::size_t kLanes = 8;

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  // t = 1.5 * 2^23 + n -> 2^n; n = -127 gives 0.
  static F power_of_two(F t) {
    const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
  }
  static float max_lane(F x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
  }
  static F unordered(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_UNORD_Q); }
  static F either(F a, F b) { return _mm256_or_ps(a, b); }
  static bool any(F x) { return _mm256_movemask_ps(x) != 0; }
  static F keep_at_least(F x, F least) { return _mm256_and_ps(x, _mm256_cmp_ps(x, least, _CMP_GE_OQ)); }
  static F choose(F x, std::uint32_t bits) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lanes);
    const __m256 chosen = _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lanes));
    return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), x, chosen);
  }
  static std::uint32_t reaches(F x, F least) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, least, _CMP_GE_OQ)));
  }
  static __m256i order(std::uint32_t bits) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(kPlaces.of[bits]));
  }
  static void compress(F x, std::uint32_t bits, float* out) { store(out, _mm256_permutevar8x32_ps(x, order(bits))); }
  static void places(std::uint32_t bits, std::int32_t first, std::int32_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_add_epi32(_mm256_set1_epi32(first), order(bits)));
  }
};

struct Doubles {
  static __m256d zero() { return _mm256_setzero_pd(); }
  static __m256d add(__m256d sum, __m256 x) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    return _mm256_add_pd(sum, _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))));
  }
  static double total(__m256d sum) {
    const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd(sum, 1));
    return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
  }
};

#include "cpu/sampling/sampling_simd.h"

}  // namespace

const SamplingKernel kSamplingAvx2 = {survey, mask, weigh, gather, distribute, extent};

}  // namespace kvfold

#endif
