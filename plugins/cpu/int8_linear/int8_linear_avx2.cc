// Int8Linear on AVX2: vpmaddubsw multiplies unsigned by signed bytes and saturates at 16 bits, so it
// gets |q| and the weight with q's sign: 2 * 127 * 127 fits.
#if defined(__AVX2__)

#include <immintrin.h>

#include "cpu/int8_linear/int8_linear_outputs.h"

namespace kvfold {
namespace {

constexpr int kTileTokens = 4;  // 4 x 2 accumulators of 16 registers

inline __m256i broadcast4(const std::uint8_t* bytes) {
  std::int32_t word;
  std::memcpy(&word, bytes, sizeof word);
  return _mm256_set1_epi32(word);
}

// sum + the four products of each of 8 outputs.
inline __m256i dot(__m256i sum, __m256i magnitude, __m256i activation, __m256i weight) {
  const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(weight, activation));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

template <int Tokens>
void tile(const Int8Product& p, std::size_t token, std::size_t block) {
  __m256i low[Tokens], high[Tokens];
#pragma GCC unroll 8
  for (int t = 0; t < Tokens; ++t) low[t] = high[t] = _mm256_setzero_si256();
  const std::size_t row_bytes = p.in_blocks * kGroupIn;
  const std::uint8_t* q = p.rows.q + token * row_bytes;
  const auto* weight = reinterpret_cast<const __m256i*>(p.weight + block * p.in_blocks * kBlockBytes);
  for (std::size_t k = 0; k < p.in_blocks; ++k, q += kGroupIn, weight += 2) {
    const __m256i weight_low = _mm256_loadu_si256(weight), weight_high = _mm256_loadu_si256(weight + 1);
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) {
      const __m256i activation = broadcast4(q + t * row_bytes), magnitude = _mm256_abs_epi8(activation);
      low[t] = dot(low[t], magnitude, activation, weight_low);
      high[t] = dot(high[t], magnitude, activation, weight_high);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < Tokens; ++t) {
    alignas(32) std::int32_t total[kTileOut];
    _mm256_store_si256(reinterpret_cast<__m256i*>(total), low[t]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(total) + 1, high[t]);
    write_block(p, token + t, block, total);
  }
}

// tile<1>, ..., tile<4> for token counts not known at compile time.
template <int Tokens = kTileTokens>
void tile_of(std::size_t tokens, const Int8Product& p, std::size_t token, std::size_t block) {
  if constexpr (Tokens > 0) {
    if (tokens == Tokens) return tile<Tokens>(p, token, block);
    tile_of<Tokens - 1>(tokens, p, token, block);
  }
}

void multiply(const Int8Product& p, Range tokens, Range blocks) {
  for (std::size_t block = blocks.first; block < blocks.last; ++block) {
    for (std::size_t token = tokens.first; token < tokens.last; token += kTileTokens) {
      const std::size_t rest = tokens.last - token;
      tile_of(rest < kTileTokens ? rest : kTileTokens, p, token, block);
    }
  }
}

}  // namespace

const Int8Kernel int8_kernel_avx2 = {quantize_rows<0>, multiply};

}  // namespace kvfold

#endif
