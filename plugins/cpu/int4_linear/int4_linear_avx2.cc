// Int4Linear on AVX2: vpmaddubsw multiplies unsigned by signed bytes, which codes and activations are, and a
// block's eight sums of two products fit its 16 bits: 16 * 15 * 127.
#if defined(__AVX2__)

#include <immintrin.h>

#include <type_traits>

#include "cpu/int4_linear/int4_linear_kernel.h"
#include "cpu/int4_linear/int4_linear_rows.h"

namespace kvfold {
namespace {

struct Simd {
  using F = __m256;
  static constexpr std::size_t kLanes = 8;
  static constexpr int kColumns = 1, kRows = 1, kFinishRows = 8;  // 8 of 16 registers are codes
  static constexpr int kStreamColumns = 2;                        // whole lines of memory
  static constexpr int kGroups = kInt4Block / kGroupIn;
  struct Codes {
    __m256i group[kGroups];
  };

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float value) { return _mm256_set1_ps(value); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static void store(float* to, F f) { _mm256_storeu_ps(to, f); }
  static F load(const float* from) { return _mm256_loadu_ps(from); }
  static F halves(const std::uint16_t* half) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half)));
  }

  static KVFOLD_INLINE Codes unpack(const std::uint8_t* bytes) {
    Codes codes;
    const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
    for (int g = 0; g < kGroups / 2; ++g) {
      const auto* at = reinterpret_cast<const __m256i*>(bytes + g * kTileOut * kGroupIn);
      const __m256i both = _mm256_loadu_si256(at);
      codes.group[g] = _mm256_and_si256(both, low);
      codes.group[g + kGroups / 2] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    }
    return codes;
  }

  template <int Columns>
  static KVFOLD_INLINE void dots(const Int4Product& p, const Codes (&codes)[Columns], std::size_t row,
                                 std::size_t block, F (&dots)[1][Columns]) {
    const std::uint8_t* q = p.rows.q + row * p.rows.padded_in + block * kInt4Block;
    const std::size_t at = row * p.blocks + block;
#pragma GCC unroll 8
    for (int i = 0; i < Columns; ++i) {
      __m256i pairs = _mm256_maddubs_epi16(codes[i].group[0], broadcast4(q));
#pragma GCC unroll 8
      for (int g = 1; g < kGroups; ++g) {
        const __m256i more = _mm256_maddubs_epi16(codes[i].group[g], broadcast4(q + g * kGroupIn));
        pairs = _mm256_add_epi16(pairs, more);
      }
      const __m256i sum = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
      const __m256i counted = _mm256_add_epi32(sum, _mm256_castps_si256(set(p.rows.start[at])));
      dots[0][i] = _mm256_sub_ps(_mm256_castsi256_ps(counted), set(p.rows.zero[at]));
    }
  }

  static __m256i broadcast4(const std::uint8_t* bytes) {
    std::int32_t word;
    std::memcpy(&word, bytes, sizeof word);
    return _mm256_set1_epi32(word);
  }
};

#include "cpu/int4_linear/int4_linear_panels.h"

}  // namespace

const Int4Kernel int4_kernel_avx2 = {quantize_row_blocks, multiply};

}  // namespace kvfold

#endif
