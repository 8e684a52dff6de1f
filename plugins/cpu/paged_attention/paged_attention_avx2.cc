// PagedAttention for AVX2 with FMA: 8 lanes, int8 dot products as pairs of 16-bit integers.

#include <immintrin.h>

#include "cpu/paged_attention/paged_attention_split.h"

namespace kvfold {
namespace {

struct Simd {
  using F = __m256;
  static constexpr int kLanes = 8, kRows = 4, kBlocks = 2;

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F select_less(F a, F b, F yes, F no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
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
  static float add_lanes(F x) {
    __m128 m = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_add_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_add_ss(m, _mm_shuffle_ps(m, m, 1)));
  }
  static int32_t add_lanes(__m256i x) {
    __m128i m = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
  }
  static float first(F x) { return _mm256_cvtss_f32(x); }

  // 8 x 8 slots: unpack by 32 and 64 bits inside lanes, then exchange lanes.
  static void transpose(__m256i* r) {
    __m256i t[8];
    for (int i = 0; i < 8; i += 4) {
      const __m256i a = _mm256_unpacklo_epi32(r[i], r[i + 1]), b = _mm256_unpackhi_epi32(r[i], r[i + 1]);
      const __m256i c = _mm256_unpacklo_epi32(r[i + 2], r[i + 3]), d = _mm256_unpackhi_epi32(r[i + 2], r[i + 3]);
      t[i] = _mm256_unpacklo_epi64(a, c);
      t[i + 1] = _mm256_unpackhi_epi64(a, c);
      t[i + 2] = _mm256_unpacklo_epi64(b, d);
      t[i + 3] = _mm256_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_permute2x128_si256(t[i], t[i + 4], 0x20);
      r[i + 4] = _mm256_permute2x128_si256(t[i], t[i + 4], 0x31);
    }
  }
};

// What both products share: `right` moves as whole vectors of slots.
struct Slots {
  using Vector = __m256i;
  static Vector load_right(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_right(uint8_t* p, Vector x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static void transpose(Vector* rows) { Simd::transpose(rows); }
};

struct FloatDot : Slots {
  using Cache = float;
  using Sum = __m256;
  using WeightSum = __m256;
  static constexpr int kGroup = 1, kPlanes = 1;
  static constexpr float kWeightUnit = 1.0f;

  static Sum zero() { return _mm256_setzero_ps(); }
  static Vector load_cached(const float* p) { return _mm256_castps_si256(_mm256_loadu_ps(p)); }
  static void interleave(Vector*) {}
  static __m256 broadcast(const uint8_t* left) {
    return _mm256_broadcast_ss(reinterpret_cast<const float*>(left));
  }
  static Sum step(Sum sum, __m256 left, Vector right) {
    return _mm256_fmadd_ps(left, _mm256_castsi256_ps(right), sum);
  }
  static __m256 finish(Sum sum, Sum, int32_t) { return sum; }
  static void prepare(const float* query, int count, uint8_t* left, float* scale, int32_t* total) {
    for (int i = 0; i < count; i += 8) store_right(left + 4 * i, load_cached(query + i));
    *scale = 1.0f;
    *total = 0;
  }
  static WeightSum no_weights() { return _mm256_setzero_ps(); }
  static void store_weights(uint8_t* left, __m256 weight, WeightSum& sum) {
    store_right(left, _mm256_castps_si256(weight));
    sum = _mm256_add_ps(sum, weight);
  }
  static void finish_weights(WeightSum added, float* sum, int32_t* total) {
    *sum = Simd::add_lanes(added);
    *total = 0;
  }
};

// left: pairs of 16-bit integers. right: pairs of cached values, widened to 16 bits. (maddubs on
// bytes would saturate: 2 * 255 * 127 does not fit 16 bits.)
struct IntegerDot : Slots {
  using Cache = int8_t;
  using Sum = __m256i;
  using WeightSum = __m256i;
  static constexpr int kGroup = 2, kPlanes = 1;
  static constexpr float kWeightUnit = kIntegerLimit;

  static Sum zero() { return _mm256_setzero_si256(); }
  static Vector load_cached(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void interleave(Vector* r) {
    const __m256i low = _mm256_unpacklo_epi16(r[0], r[1]), high = _mm256_unpackhi_epi16(r[0], r[1]);
    r[0] = _mm256_permute2x128_si256(low, high, 0x20);
    r[1] = _mm256_permute2x128_si256(low, high, 0x31);
  }
  static Vector broadcast(const uint8_t* left) {
    return _mm256_set1_epi32(*reinterpret_cast<const int32_t*>(left));
  }
  static Sum step(Sum sum, Vector left, Vector right) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(left, right));
  }
  static __m256 finish(Sum sum, Sum, int32_t) { return _mm256_cvtepi32_ps(sum); }
  static void store_left(uint8_t* left, __m256i integers) {
    const __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(left), packed);
  }
  static void prepare(const float* query, int count, uint8_t* left, float* scale, int32_t* total) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 top = _mm256_setzero_ps();
    for (int i = 0; i < count; i += 8) top = _mm256_max_ps(top, _mm256_andnot_ps(sign, _mm256_loadu_ps(query + i)));
    const float max = Simd::max_lane(top);
    *scale = max > 1e-30f ? max / kIntegerLimit : 1.0f;
    const __m256 inverse = _mm256_set1_ps(max > 1e-30f ? kIntegerLimit / max : 0.0f);
    __m256i added = _mm256_setzero_si256();
    for (int i = 0; i < count; i += 8) {
      const __m256i integers = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(query + i), inverse));
      added = _mm256_add_epi32(added, integers);
      store_left(left + i / kGroup * 4 * kPlanes, integers);
    }
    *total = Simd::add_lanes(added);
  }
  static WeightSum no_weights() { return _mm256_setzero_si256(); }
  static void store_weights(uint8_t* left, __m256 weight, WeightSum& sum) {
    const __m256i integers = _mm256_cvtps_epi32(_mm256_mul_ps(weight, _mm256_set1_ps(kIntegerLimit)));
    sum = _mm256_add_epi32(sum, integers);
    store_left(left, integers);
  }
  static void finish_weights(WeightSum added, float* sum, int32_t* total) {
    *total = Simd::add_lanes(added);
    *sum = static_cast<float>(*total);
  }
};

#include "cpu/paged_attention/paged_attention_simd.h"

}  // namespace

extern const AttentionKernels kAttentionFloatAvx2 = make_kernels<FloatDot>();
extern const AttentionKernels kAttentionInt8Avx2 = make_kernels<IntegerDot>();

}  // namespace kvfold
