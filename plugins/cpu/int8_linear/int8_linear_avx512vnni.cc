// Int8Linear on AVX512-VNNI: vpdpbusd multiplies unsigned by signed bytes, so activations are stored as
// q + 128 and every sum starts at -128 * weight_sum.
#if defined(__AVX512VNNI__)

#include <immintrin.h>

#include "cpu/int8_linear/int8_linear_outputs.h"

namespace kvfold {
namespace {

constexpr int kTileTokens = 8;
constexpr int kPanelBlocks = 3;  // 8 x 3 accumulators of 32 registers

// Not the intrinsic: GCC 12 then spills the accumulators to memory in every step, at half the speed.
inline __attribute__((always_inline)) void dot(__m512i& sum, __m512i activation, __m512i weight) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(activation), "v"(weight));
}

inline __m512i broadcast4(const std::uint8_t* bytes) {
  std::int32_t word;
  std::memcpy(&word, bytes, sizeof word);
  return _mm512_set1_epi32(word);
}

// Tokens x Blocks of 16 outputs, all sums in registers, while the weights `ahead` of these by some
// bytes are on their way from memory.
template <int Tokens, int Blocks>
void tile(const Int8Product& p, std::size_t token, std::size_t block, std::size_t ahead) {
  __m512i sum[Tokens][Blocks];
#pragma GCC unroll 8
  for (int b = 0; b < Blocks; ++b) {
    const __m512i weight_sum = _mm512_loadu_si512(p.weight_sum + (block + b) * kTileOut);
    const __m512i start = _mm512_mullo_epi32(weight_sum, _mm512_set1_epi32(-128));
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) sum[t][b] = start;
  }
  const std::size_t block_bytes = p.in_blocks * kBlockBytes, row_bytes = p.in_blocks * kGroupIn;
  const std::uint8_t* q = p.rows.q + token * row_bytes;
  const std::int8_t* weight = p.weight + block * block_bytes;
  for (std::size_t k = 0; k < p.in_blocks; ++k, q += kGroupIn, weight += kBlockBytes) {
    if constexpr (Blocks > 1) {  // a single block is one stream, which the hardware sees by itself
#pragma GCC unroll 8
      for (int b = 0; b < Blocks; ++b) {
        _mm_prefetch(reinterpret_cast<const char*>(weight + b * block_bytes + ahead), _MM_HINT_T1);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) {
      const __m512i activation = broadcast4(q + t * row_bytes);
#pragma GCC unroll 8
      for (int b = 0; b < Blocks; ++b) {
        dot(sum[t][b], activation, _mm512_loadu_si512(weight + b * block_bytes));
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 8
    for (int b = 0; b < Blocks; ++b) {
      alignas(64) std::int32_t total[kTileOut];
      _mm512_store_si512(total, sum[t][b]);
      write_block(p, token + t, block + b, total);
    }
  }
}

// tile<1>, ..., tile<8> for token counts not known at compile time.
template <int Blocks, int Tokens = kTileTokens>
void tile_of(std::size_t tokens, const Int8Product& p, std::size_t token, std::size_t block, std::size_t ahead) {
  if constexpr (Tokens > 0) {
    if (tokens == Tokens) return tile<Tokens, Blocks>(p, token, block, ahead);
    tile_of<Blocks, Tokens - 1>(tokens, p, token, block, ahead);
  }
}

// All tokens over one group of blocks, which stays in the core's cache; meanwhile the next group comes.
template <int Blocks>
void group(const Int8Product& p, Range tokens, std::size_t block, bool last) {
  std::size_t ahead = last ? 0 : Blocks * p.in_blocks * kBlockBytes;
  for (std::size_t token = tokens.first; token < tokens.last; token += kTileTokens) {
    const std::size_t rest = tokens.last - token;
    tile_of<Blocks>(rest < kTileTokens ? rest : kTileTokens, p, token, block, ahead);
    ahead = 0;
  }
}

void multiply(const Int8Product& p, Range tokens, Range blocks) {
  std::size_t block = blocks.first;
  const bool single_token = tokens.last - tokens.first == 1;
  for (; !single_token && block + kPanelBlocks <= blocks.last; block += kPanelBlocks) {
    group<kPanelBlocks>(p, tokens, block, block + 2 * kPanelBlocks > blocks.last);
  }
  for (; block < blocks.last; ++block) group<1>(p, tokens, block, true);
}

}  // namespace

const Int8Kernel int8_kernel_avx512vnni = {quantize_rows<128>, multiply};

}  // namespace kvfold

#endif
