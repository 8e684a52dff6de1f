// Int4Linear on AVX512-VNNI: vpdpbusd multiplies unsigned by signed bytes, which codes and activations are.
#if defined(__AVX512VNNI__)

#include <immintrin.h>

#include <type_traits>

#include "cpu/int4_linear/int4_linear_kernel.h"
#include "cpu/int4_linear/int4_linear_rows.h"

namespace kvfold {
namespace {

typedef std::int32_t Ints __attribute__((vector_size(64)));

struct Simd {
  using F = __m512;
  static constexpr std::size_t kLanes = 16;
  static constexpr int kStreamColumns = 1, kColumns = 2, kRows = 2, kFinishRows = 8;  // 16 of 32 registers are codes
  static constexpr int kGroups = kInt4Block / kGroupIn;
  struct Codes {
    Ints group[kGroups];
  };

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float value) { return _mm512_set1_ps(value); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static void store(float* to, F f) { _mm512_storeu_ps(to, f); }
  static F load(const float* from) { return _mm512_loadu_ps(from); }
  static F halves(const std::uint16_t* half) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
  }

  // Operators, not intrinsics, here and below: GCC 12 spills what intrinsics of AVX512 give, at half the speed.
  static KVFOLD_INLINE Codes unpack(const std::uint8_t* bytes) {
    Codes codes;
#pragma GCC unroll 8
    for (int g = 0; g < kGroups / 2; ++g) {
      Ints both;
      std::memcpy(&both, bytes + g * sizeof both, sizeof both);
      codes.group[g] = both & 0x0F0F0F0F;
      codes.group[g + kGroups / 2] = (both >> 4) & 0x0F0F0F0F;
    }
    return codes;
  }

  static KVFOLD_INLINE Ints dot(Ints sum, Ints codes, Ints activation) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(activation));
    return sum;
  }

  template <int Rows, int Columns>
  static KVFOLD_INLINE void dots(const Int4Product& p, const Codes (&codes)[Columns], std::size_t row,
                                 std::size_t block, F (&dots)[Rows][Columns]) {
    const std::uint8_t* q = p.rows.q + row * p.rows.padded_in + block * kInt4Block;
    const std::size_t at = row * p.blocks + block;
    Ints sum[Rows][Columns];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < Columns; ++i) sum[r][i] = Ints{} + float_bits(p.rows.start[at + r * p.blocks]);
    }
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        std::int32_t word;
        std::memcpy(&word, q + r * p.rows.padded_in + g * kGroupIn, sizeof word);
        const Ints activation = Ints{} + word;
#pragma GCC unroll 8
        for (int i = 0; i < Columns; ++i) {
          sum[r][i] = dot(sum[r][i], codes[i].group[g], activation);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < Columns; ++i) dots[r][i] = (F)sum[r][i] - p.rows.zero[at + r * p.blocks];
    }
  }
};

#include "cpu/int4_linear/int4_linear_panels.h"

}  // namespace

const Int4Kernel int4_kernel_avx512vnni = {quantize_row_blocks, multiply};

}  // namespace kvfold

#endif
