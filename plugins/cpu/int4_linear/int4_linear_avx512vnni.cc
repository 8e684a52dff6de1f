// Int4Linear on AVX512-VNNI: vpdpbusd multiplies unsigned by signed bytes, which codes and activations are.
#if defined(__AVX512VNNI__)

#include <immintrin.h>

#include <type_traits>

#include "cpu/int4_linear/int4_linear_kernel.h"
#include "cpu/linear/linear_rows.h"

namespace kvfold {
namespace {

typedef std::uint16_t Words __attribute__((vector_size(64)));

struct Simd {
  using F = __m512;
  static constexpr std::size_t kLanes = 16;
  static constexpr int kColumns = 2, kRows = 2;  // 16 of 32 registers are codes
  static constexpr int kGroups = kInt4Block / kGroupIn;
  struct Codes {
    __m512i group[kGroups];
  };

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float value) { return _mm512_set1_ps(value); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static void store(float* to, F f) { _mm512_store_ps(to, f); }
  static F halves(const std::uint16_t* half) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
  }

  // No intrinsic of a shift or a product: GCC 12 then spills registers to memory, at half the speed.
  static KVFOLD_INLINE Codes unpack(const std::uint8_t* bytes) {
    Codes codes;
    const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int g = 0; g < kGroups / 2; ++g) {
      const __m512i both = _mm512_loadu_si512(bytes + g * kTileOut * kGroupIn);
      codes.group[g] = both & low;
      codes.group[g + kGroups / 2] = reinterpret_cast<__m512i>(reinterpret_cast<Words>(both) >> 4) & low;
    }
    return codes;
  }

  static KVFOLD_INLINE void dot(__m512i& sum, __m512i codes, __m512i activation) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(activation));
  }

  template <bool Start, int Rows, int Columns>
  static KVFOLD_INLINE void dots(const Int4Product& p, const Codes (&codes)[Columns], const std::uint8_t* q,
                                 const std::int32_t* start, F (&dots)[Rows][Columns]) {
    __m512i sum[Rows][Columns];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < Columns; ++i) {
        sum[r][i] = Start ? _mm512_set1_epi32(start[r * p.blocks]) : _mm512_setzero_si512();
      }
    }
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        std::int32_t word;
        std::memcpy(&word, q + r * p.rows.padded_in + g * kGroupIn, sizeof word);
        const __m512i activation = _mm512_set1_epi32(word);
#pragma GCC unroll 4
        for (int i = 0; i < Columns; ++i) dot(sum[r][i], codes[i].group[g], activation);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < Columns; ++i) dots[r][i] = _mm512_cvtepi32_ps(sum[r][i]);
    }
  }
};

#include "cpu/int4_linear/int4_linear_panels.h"

}  // namespace

const Int4Kernel int4_kernel_avx512vnni = {quantize_rows<0>, multiply};

}  // namespace kvfold

#endif
