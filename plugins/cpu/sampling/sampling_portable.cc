// Sampling's passes for any CPU: 4 lanes in GCC's and clang's vector extension, no fused arithmetic.

#include <cstring>

#include "cpu/sampling/sampling_kernel.h"

namespace kvfold {
namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef std::int32_t Words __attribute__((vector_size(16)));

struct Simd {
  using F = Floats;
  static constexpr std::size_t kLanes = 4;

  static F load(const float* p) { return copy<F>(p); }
  static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  static F set(float x) { return F{x, x, x, x}; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F max(F a, F b) { return select(a > b, a, b); }
  // t = 1.5 * 2^23 + n -> 2^n; n = -127 gives 0.
  static F power_of_two(F t) { return reinterpret<F>((reinterpret<Words>(t) + 127) << 23); }
  static float max_lane(F x) {
    float top = x[0];
    for (std::size_t i = 1; i < kLanes; ++i) top = x[i] > top ? x[i] : top;
    return top;
  }
  static F unordered(F a, F b) { return reinterpret<F>((a != a) | (b != b)); }
  static F either(F a, F b) { return reinterpret<F>(reinterpret<Words>(a) | reinterpret<Words>(b)); }
  static bool any(F x) {
    const Words bits = reinterpret<Words>(x);
    return (bits[0] | bits[1] | bits[2] | bits[3]) != 0;
  }
  static F keep_at_least(F x, F least) { return reinterpret<F>(reinterpret<Words>(x) & (x >= least)); }
  static F choose(F x, std::uint32_t bits) {
    const Words lanes = {1, 2, 4, 8}, set = (lanes & static_cast<std::int32_t>(bits)) == lanes;
    return select(set, x, F{} - __builtin_inff());
  }
  static std::uint32_t reaches(F x, F least) {
    const Words bits = (x >= least) & Words{1, 2, 4, 8};
    return static_cast<std::uint32_t>(bits[0] | bits[1] | bits[2] | bits[3]);
  }
  static void compress(F x, std::uint32_t bits, float* out) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      *out = x[lane];
      out += bits >> lane & 1;
    }
  }
  static void places(std::uint32_t bits, std::int32_t first, std::int32_t* out) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      *out = first++;
      out += bits >> lane & 1;
    }
  }

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
  static F select(Words mask, F yes, F no) {
    return reinterpret<F>((mask & reinterpret<Words>(yes)) | (~mask & reinterpret<Words>(no)));
  }
};

struct Doubles {
  static double zero() { return 0; }
  static double add(double sum, Floats x) {
    return sum + ((static_cast<double>(x[0]) + x[1]) + (static_cast<double>(x[2]) + x[3]));
  }
  static double total(double sum) { return sum; }
};

#include "cpu/sampling/sampling_simd.h"

}  // namespace

const SamplingKernel kSamplingPortable = {survey, mask, weigh, gather, distribute, extent};

}  // namespace kvfold
