// PagedAttention for any CPU: 4 lanes in GCC's and clang's vector extension, no fused arithmetic.

#include <cstring>

#include "cpu/paged_attention/paged_attention_split.h"

namespace kvfold {
namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Words __attribute__((vector_size(16)));
typedef int16_t Pairs __attribute__((vector_size(16)));

struct Simd {
  using F = Floats;
  static constexpr int kLanes = 4, kRows = 4, kBlocks = 1;

  static F load(const float* p) { return copy<F>(p); }
  static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  static F set(float x) { return F{x, x, x, x}; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F select_less(F a, F b, F yes, F no) {
    const Words mask = a < b;
    return reinterpret<F>((mask & reinterpret<Words>(yes)) | (~mask & reinterpret<Words>(no)));
  }
  static F max(F a, F b) { return select_less(b, a, a, b); }
  // t = 1.5 * 2^23 + n -> 2^n; n = -127 gives 0.
  static F power_of_two(F t) { return reinterpret<F>((reinterpret<Words>(t) + 127) << 23); }
  static float max_lane(F x) {
    float top = x[0];
    for (int i = 1; i < kLanes; ++i) top = x[i] > top ? x[i] : top;
    return top;
  }
  static float first(F x) { return x[0]; }

  template <typename T>
  static T copy(const void* p) {
    T x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  template <typename To, typename From>
  static To reinterpret(From x) {
    return copy<To>(&x);
  }
  // Rounds half to even: |x| < 2^22 plus 1.5 * 2^23 leaves no room for a fraction.
  static Words round(F x) { return reinterpret<Words>(x + 12582912.0f) - 0x4B400000; }
};

// What both products share: `right` moves as whole vectors of slots.
struct Slots {
  using Vector = Words;
  static Vector load_right(const uint8_t* p) { return Simd::copy<Vector>(p); }
  static void store_right(uint8_t* p, Vector x) { std::memcpy(p, &x, sizeof x); }
  static void transpose(Vector* r) {
    const Vector a = r[0], b = r[1], c = r[2], d = r[3];
    for (int i = 0; i < 4; ++i) r[i] = Vector{a[i], b[i], c[i], d[i]};
  }
};

struct FloatDot : Slots {
  using Cache = float;
  using Sum = Floats;
  using WeightSum = Floats;
  static constexpr int kGroup = 1, kPlanes = 1;
  static constexpr float kWeightUnit = 1.0f;

  static Sum zero() { return Simd::set(0.0f); }
  static Vector load_cached(const float* p) { return Simd::copy<Vector>(p); }
  static void interleave(Vector*) {}
  static Floats broadcast(const uint8_t* left) { return Simd::set(Simd::copy<float>(left)); }
  static Sum step(Sum sum, Floats left, Vector right) { return sum + left * Simd::reinterpret<Floats>(right); }
  static Floats finish(Sum sum, Sum, int32_t) { return sum; }
  static void prepare(const float* query, int count, uint8_t* left, float* scale, int32_t* total) {
    std::memcpy(left, query, sizeof(float) * count);
    *scale = 1.0f;
    *total = 0;
  }
  static WeightSum no_weights() { return Simd::set(0.0f); }
  static void store_weights(uint8_t* left, Floats weight, WeightSum& sum) {
    std::memcpy(left, &weight, sizeof weight);
    sum += weight;
  }
  static void finish_weights(WeightSum added, float* sum, int32_t* total) {
    *sum = (added[0] + added[1]) + (added[2] + added[3]);
    *total = 0;
  }
};

// left: pairs of 16-bit integers. right: pairs of cached values, widened to 16 bits.
struct IntegerDot : Slots {
  using Cache = int8_t;
  using Sum = Words;
  using WeightSum = int32_t;
  static constexpr int kGroup = 2, kPlanes = 1;
  static constexpr float kWeightUnit = kIntegerLimit;

  static Sum zero() { return Words{0, 0, 0, 0}; }
  static Vector load_cached(const int8_t* p) {
    return Simd::reinterpret<Vector>(Pairs{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]});
  }
  static void interleave(Vector* r) {
    const Pairs a = Simd::reinterpret<Pairs>(r[0]), b = Simd::reinterpret<Pairs>(r[1]);
    r[0] = Simd::reinterpret<Vector>(Pairs{a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]});
    r[1] = Simd::reinterpret<Vector>(Pairs{a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]});
  }
  static Pairs broadcast(const uint8_t* left) {
    const int32_t pair = Simd::copy<int32_t>(left);
    return Simd::reinterpret<Pairs>(Words{pair, pair, pair, pair});
  }
  static Sum step(Sum sum, Pairs left, Vector right) {
    const Pairs values = Simd::reinterpret<Pairs>(right);
    for (int i = 0; i < 4; ++i) sum[i] += left[2 * i] * values[2 * i] + left[2 * i + 1] * values[2 * i + 1];
    return sum;
  }
  static Floats finish(Sum sum, Sum, int32_t) { return __builtin_convertvector(sum, Floats); }
  static void store_left(uint8_t* left, Words integers) {
    for (int i = 0; i < 4; ++i) {
      const auto value = static_cast<int16_t>(integers[i]);
      std::memcpy(left + 2 * i, &value, sizeof value);
    }
  }
  static void prepare(const float* query, int count, uint8_t* left, float* scale, int32_t* total) {
    float max = 0.0f;
    for (int i = 0; i < count; ++i) {
      const float size = query[i] < 0 ? -query[i] : query[i];
      max = size > max ? size : max;
    }
    *scale = max > 1e-30f ? max / kIntegerLimit : 1.0f;
    const float inverse = max > 1e-30f ? kIntegerLimit / max : 0.0f;
    *total = 0;
    for (int i = 0; i < count; i += 4) {
      const Words integers = Simd::round(Simd::load(query + i) * inverse);
      *total += integers[0] + integers[1] + integers[2] + integers[3];
      store_left(left + i / kGroup * 4 * kPlanes, integers);
    }
  }
  static WeightSum no_weights() { return 0; }
  static void store_weights(uint8_t* left, Floats weight, WeightSum& sum) {
    const Words integers = Simd::round(weight * static_cast<float>(kIntegerLimit));
    sum += integers[0] + integers[1] + integers[2] + integers[3];
    store_left(left, integers);
  }
  static void finish_weights(WeightSum added, float* sum, int32_t* total) {
    *total = added;
    *sum = static_cast<float>(added);
  }
};

#include "cpu/paged_attention/paged_attention_simd.h"

}  // namespace

extern const AttentionKernels kAttentionFloatPortable = make_kernels<FloatDot>();
extern const AttentionKernels kAttentionInt8Portable = make_kernels<IntegerDot>();

}  // namespace kvfold
