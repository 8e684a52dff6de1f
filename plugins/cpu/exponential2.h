// 2^x over a vector layer. An instruction set's file includes it inside its own anonymous namespace, after
// defining Simd: F (kLanes floats), set, add, sub, mul, fma, max and power_of_two.

using F = Simd::F;

constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 0: 2^n * p(x - n), n the nearest integer; p is the minimax polynomial with p(0) = 1,
// relative error 1.1e-7. Below -127 it is exactly 0.
inline F exponential2(F x) {
  const F magic = Simd::set(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = Simd::max(x, Simd::set(-127.0f));
  const F t = Simd::add(x, magic);
  const F r = Simd::sub(x, Simd::sub(t, magic));
  F p = Simd::set(1.326472731e-3f);
  p = Simd::fma(p, r, Simd::set(9.671512991e-3f));
  p = Simd::fma(p, r, Simd::set(5.550733581e-2f));
  p = Simd::fma(p, r, Simd::set(2.402224243e-1f));
  p = Simd::fma(p, r, Simd::set(6.931470037e-1f));
  p = Simd::fma(p, r, Simd::set(1.0f));
  return Simd::mul(p, Simd::power_of_two(t));
}
