// Sampling's passes for AVX512: 16 lanes, masks in registers.
#if defined(__AVX512F__)

#include <immintrin.h>

#include "cpu/sampling/sampling_kernel.h"

namespace kvfold {
namespace {

struct Simd {
  using F = __m512;
  static constexpr std::size_t kLanes = 16;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  // t = 1.5 * 2^23 + n -> 2^n; n = -127 gives 0.
  static F power_of_two(F t) {
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 23));
  }
  static float max_lane(F x) { return _mm512_reduce_max_ps(x); }
  static F unordered(F a, F b) {
    return _mm512_castsi512_ps(_mm512_movm_epi32(_mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q)));
  }
  static F either(F a, F b) { return _mm512_or_ps(a, b); }
  static bool any(F x) { return _mm512_movepi32_mask(_mm512_castps_si512(x)) != 0; }
  static F keep_at_least(F x, F least) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, least, _CMP_GE_OQ), x);
  }
  static F choose(F x, std::uint32_t bits) {
    return _mm512_mask_mov_ps(set(-__builtin_inff()), static_cast<__mmask16>(bits), x);
  }
  static std::uint32_t reaches(F x, F least) { return _mm512_cmp_ps_mask(x, least, _CMP_GE_OQ); }
  // Compressed in registers: compressing stores are slow on some processors.
  static void compress(F x, std::uint32_t bits, float* out) {
    store(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), x));
  }
  static void places(std::uint32_t bits, std::int32_t first, std::int32_t* out) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i numbers = _mm512_add_epi32(_mm512_set1_epi32(first), lanes);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), numbers));
  }
};

struct Doubles {
  static __m512d zero() { return _mm512_setzero_pd(); }
  static __m512d add(__m512d sum, __m512 x) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    return _mm512_add_pd(sum, _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))));
  }
  static double total(__m512d sum) { return _mm512_reduce_add_pd(sum); }
};

#include "cpu/sampling/sampling_simd.h"

}  // namespace

const SamplingKernel kSamplingAvx512 = {survey, mask, weigh, gather, distribute, extent};

}  // namespace kvfold

#endif
