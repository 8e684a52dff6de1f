// PagedAttention for AVX512 with VNNI: 16 lanes, int8 dot products of unsigned by signed bytes.

#include <immintrin.h>

#include "cpu/paged_attention/paged_attention_split.h"

namespace kvfold {
namespace {

struct Simd {
  using F = __m512;
  static constexpr int kLanes = 16, kRows = 6, kBlocks = 2;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F select_less(F a, F b, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
  }
  // t = 1.5 * 2^23 + n -> 2^n; n = -127 gives 0.
  static F power_of_two(F t) {
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 23));
  }
  static float max_lane(F x) { return _mm512_reduce_max_ps(x); }
  static float first(F x) { return _mm512_cvtss_f32(x); }

  // 16 x 16 slots: unpack by 32 and 64 bits inside lanes, then exchange lanes.
  static void transpose(__m512i* r) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 4) {
      const __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]), b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
      const __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]), d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
      t[i] = _mm512_unpacklo_epi64(a, c);
      t[i + 1] = _mm512_unpackhi_epi64(a, c);
      t[i + 2] = _mm512_unpacklo_epi64(b, d);
      t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; ++i) {
      exchange_lanes(t[i], t[i + 4], t[i + 8], t[i + 12]);
      r[i] = t[i];
      r[i + 4] = t[i + 4];
      r[i + 8] = t[i + 8];
      r[i + 12] = t[i + 12];
    }
  }
  // Transposes four vectors of four 128-bit lanes.
  static void exchange_lanes(__m512i& a, __m512i& b, __m512i& c, __m512i& d) {
    const __m512i ab_even = _mm512_shuffle_i32x4(a, b, 0x88), ab_odd = _mm512_shuffle_i32x4(a, b, 0xdd);
    const __m512i cd_even = _mm512_shuffle_i32x4(c, d, 0x88), cd_odd = _mm512_shuffle_i32x4(c, d, 0xdd);
    a = _mm512_shuffle_i32x4(ab_even, cd_even, 0x88);
    c = _mm512_shuffle_i32x4(ab_even, cd_even, 0xdd);
    b = _mm512_shuffle_i32x4(ab_odd, cd_odd, 0x88);
    d = _mm512_shuffle_i32x4(ab_odd, cd_odd, 0xdd);
  }
};

struct FloatDot {
  using Cache = float;
  using Vector = __m512i;
  using Sum = __m512;
  using WeightSum = __m512;
  static constexpr int kGroup = 1, kPlanes = 1;
  static constexpr float kWeightUnit = 1.0f;

  static Sum zero() { return _mm512_setzero_ps(); }
  static Vector load_cached(const float* p) { return _mm512_loadu_si512(p); }
  static Vector load_right(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store_right(uint8_t* p, Vector x) { _mm512_storeu_si512(p, x); }
  static void transpose(Vector* rows) { Simd::transpose(rows); }
  static void interleave(Vector*) {}
  static __m512 broadcast(const uint8_t* left) { return _mm512_set1_ps(*reinterpret_cast<const float*>(left)); }
  static Sum step(Sum sum, __m512 left, Vector right) {
    return _mm512_fmadd_ps(left, _mm512_castsi512_ps(right), sum);
  }
  static __m512 finish(Sum sum, Sum, int32_t) { return sum; }
  static void prepare(const float* query, int count, uint8_t* left, float* scale, int32_t* total) {
    for (int i = 0; i < count; i += 16) _mm512_storeu_si512(left + 4 * i, _mm512_loadu_si512(query + i));
    *scale = 1.0f;
    *total = 0;
  }
  static WeightSum no_weights() { return _mm512_setzero_ps(); }
  static void store_weights(uint8_t* left, __m512 weight, WeightSum& sum) {
    _mm512_storeu_ps(left, weight);
    sum = _mm512_add_ps(sum, weight);
  }
  static void finish_weights(WeightSum added, float* sum, int32_t* total) {
    *sum = _mm512_reduce_add_ps(added);
    *total = 0;
  }
};

// left: 4 high bytes, then 4 low bytes of 4 integers 256 * high + low, all signed.
// right: 4 cached values + 128 as unsigned bytes; finish() takes 128 * (sum of left) away again.
struct IntegerDot {
  using Cache = int8_t;
  using Vector = __m512i;
  using Sum = __m512i;
  using WeightSum = __m512i;
  static constexpr int kGroup = 4, kPlanes = 2;
  static constexpr float kWeightUnit = kIntegerLimit;

  static Sum zero() { return _mm512_setzero_si512(); }
  static Vector load_cached(const int8_t* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128));
  }
  static Vector load_right(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store_right(uint8_t* p, Vector x) { _mm512_storeu_si512(p, x); }
  static void transpose(Vector* rows) { Simd::transpose(rows); }
  static void interleave(Vector* r) {
    const __m512i ab_low = _mm512_unpacklo_epi8(r[0], r[1]), ab_high = _mm512_unpackhi_epi8(r[0], r[1]);
    const __m512i cd_low = _mm512_unpacklo_epi8(r[2], r[3]), cd_high = _mm512_unpackhi_epi8(r[2], r[3]);
    r[0] = _mm512_unpacklo_epi16(ab_low, cd_low);
    r[1] = _mm512_unpackhi_epi16(ab_low, cd_low);
    r[2] = _mm512_unpacklo_epi16(ab_high, cd_high);
    r[3] = _mm512_unpackhi_epi16(ab_high, cd_high);
    Simd::exchange_lanes(r[0], r[1], r[2], r[3]);
  }
  static Vector broadcast(const uint8_t* left) {
    return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(left));
  }
  // Not the intrinsic: around it GCC 12 copies every sum between registers and memory.
  static Sum step(Sum sum, Vector left, Vector right) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(right), "v"(left));
    return sum;
  }
  static __m512 finish(Sum high, Sum low, int32_t total) {
    const __m512i shifted = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(shifted, _mm512_set1_epi32(128 * total)));
  }
  // w is integer + 128 in its low 16 bits: high is byte 1, low is byte 0 less 128.
  static void store_planes(uint8_t* left, __m512i w) {
    const __m512i planes = _mm512_broadcast_i32x4(_mm_setr_epi8(1, 5, 9, 13, 0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m512i flip = _mm512_set1_epi64(static_cast<int64_t>(0x8080808000000000));
    const __m512i bytes = _mm512_xor_si512(_mm512_shuffle_epi8(w, planes), flip);
    const __m512i packed = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 0, 0, 0, 0), bytes);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(left), _mm512_castsi512_si256(packed));
  }
  static void prepare(const float* query, int count, uint8_t* left, float* scale, int32_t* total) {
    __m512 top = _mm512_setzero_ps();
    for (int i = 0; i < count; i += 16) top = _mm512_max_ps(top, _mm512_abs_ps(_mm512_loadu_ps(query + i)));
    const float max = _mm512_reduce_max_ps(top);
    *scale = max > 1e-30f ? max / kIntegerLimit : 1.0f;
    const __m512 inverse = _mm512_set1_ps(max > 1e-30f ? kIntegerLimit / max : 0.0f);
    __m512i added = _mm512_setzero_si512();
    for (int i = 0; i < count; i += 16) {
      const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(query + i), inverse));
      added = _mm512_add_epi32(added, integers);
      store_planes(left + i / kGroup * 4 * kPlanes, _mm512_add_epi32(integers, _mm512_set1_epi32(128)));
    }
    *total = _mm512_reduce_add_epi32(added);
  }
  static WeightSum no_weights() { return _mm512_setzero_si512(); }
  static void store_weights(uint8_t* left, __m512 weight, WeightSum& sum) {
    // Adding 1.5 * 2^23 + 128 rounds, and leaves integer + 128 in the low bits.
    const __m512 limit = _mm512_set1_ps(kIntegerLimit), magic = _mm512_set1_ps(12582912.0f + 128.0f);
    const __m512i w = _mm512_castps_si512(_mm512_fmadd_ps(weight, limit, magic));
    sum = _mm512_add_epi32(sum, _mm512_sub_epi32(w, _mm512_castps_si512(magic)));
    store_planes(left, w);
  }
  static void finish_weights(WeightSum added, float* sum, int32_t* total) {
    *total = _mm512_reduce_add_epi32(added);
    *sum = static_cast<float>(*total);
  }
};

#include "cpu/paged_attention/paged_attention_simd.h"

}  // namespace

extern const AttentionKernels kAttentionFloatAvx512Vnni = make_kernels<FloatDot>();
extern const AttentionKernels kAttentionInt8Avx512Vnni = make_kernels<IntegerDot>();

}  // namespace kvfold
