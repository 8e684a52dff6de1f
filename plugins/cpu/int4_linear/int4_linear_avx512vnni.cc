// Int4Linear on AVX512-VNNI: vpdpbusd multiplies unsigned by signed bytes, which codes and activations are. A
// block's codes, unpacked, stay in registers while tokens pass by.
#if defined(__AVX512VNNI__)

#include <immintrin.h>

#include "cpu/int4_linear/int4_linear_outputs.h"

namespace kvfold {
namespace {

constexpr int kGroups = kInt4Block / kGroupIn;
constexpr std::size_t kPanelRows = 64;  // rows whose sums stay in the core's first cache

// Not the intrinsic: GCC 12 then spills to memory (int8_linear_avx512vnni.cc).
inline __attribute__((always_inline)) void dot(__m512i& sum, __m512i codes, __m512i activation) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(activation));
}

inline __m512i broadcast4(const std::uint8_t* bytes) {
  std::int32_t word;
  std::memcpy(&word, bytes, sizeof word);
  return _mm512_set1_epi32(word);
}

inline __m512 halves(const std::uint16_t* half) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
}

// One block of Tiles tiles: 16 outputs x 4 inputs a register.
template <int Tiles>
struct Block {
  __m512i codes[Tiles][kGroups];
  __m512 scale[Tiles];

  inline __attribute__((always_inline)) Block(const Int4Product& p, std::size_t tile, std::size_t block) {
    const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 8
    for (int i = 0; i < Tiles; ++i) {
      const std::size_t at = (tile + i) * p.blocks + block;
      scale[i] = halves(p.weight_scale + at * kTileOut);
#pragma GCC unroll 8
      for (int g = 0; g < kGroups / 2; ++g) {
        const __m512i both = _mm512_loadu_si512(p.weight + at * kInt4BlockBytes + g * 64);
        codes[i][g] = _mm512_and_si512(both, nibble);
        codes[i][g + kGroups / 2] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
      }
    }
  }
};

// sum[Tokens][Tiles] += a block's integer products times its scales.
template <int Tokens, int Tiles, bool Minimum>
inline __attribute__((always_inline)) void add_block(const Int4Product& p, const Block<Tiles>& b, const std::uint8_t* q,
                                                     const std::int32_t* start, __m512 (&sum)[Tokens][Tiles]) {
  __m512i dots[Tokens][Tiles];
#pragma GCC unroll 8
  for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 8
    for (int i = 0; i < Tiles; ++i) dots[t][i] = Minimum ? _mm512_setzero_si512() : _mm512_set1_epi32(start[t * p.blocks]);
  }
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) {
      const __m512i activation = broadcast4(q + t * p.rows.padded_in + g * kGroupIn);
#pragma GCC unroll 8
      for (int i = 0; i < Tiles; ++i) dot(dots[t][i], b.codes[i][g], activation);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 8
    for (int i = 0; i < Tiles; ++i) {
      sum[t][i] = _mm512_add_ps(sum[t][i], _mm512_mul_ps(_mm512_cvtepi32_ps(dots[t][i]), b.scale[i]));
    }
  }
}

// sum[Tokens][Tiles] += a block's minima times the activations' sums.
template <int Tokens, int Tiles>
inline __attribute__((always_inline)) void add_minima(const Int4Product& p, std::size_t tile, std::size_t block,
                                                      const std::int32_t* sums, __m512 (&sum)[Tokens][Tiles]) {
#pragma GCC unroll 8
  for (int i = 0; i < Tiles; ++i) {
    const __m512 minimum = halves(p.weight_minimum + ((tile + i) * p.blocks + block) * kTileOut);
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) {
      const __m512 activations = _mm512_cvtepi32_ps(_mm512_set1_epi32(sums[t * p.blocks]));
      sum[t][i] = _mm512_add_ps(sum[t][i], _mm512_mul_ps(activations, minimum));
    }
  }
}

template <int Tokens, int Tiles>
inline void clear(__m512 (&sum)[Tokens][Tiles]) {
  for (auto& row : sum) {
    for (__m512& lanes : row) lanes = _mm512_setzero_ps();
  }
}

// c of the formula, for a few rows.
template <int Tokens, int Tiles>
inline void minima(const Int4Product& p, std::size_t row, std::size_t tile, __m512 (&sum)[Tokens][Tiles]) {
  clear(sum);
  for (std::size_t block = 0; block < p.blocks; ++block) {
    add_minima<Tokens, Tiles>(p, tile, block, p.rows.sum + row * p.blocks + block, sum);
  }
}

// A few rows: their sums are registers, and the weight is read once.
template <int Tokens, int Tiles, bool Minimum>
void stream(const Int4Product& p, std::size_t row, std::size_t tile) {
  __m512 sum[Tokens][Tiles], c[Tokens][Tiles];
  clear(sum);
  clear(c);
  for (std::size_t block = 0; block < p.blocks; ++block) {
    const std::int32_t* sums = p.rows.sum + row * p.blocks + block;
    const Block<Tiles> b(p, tile, block);
    add_block<Tokens, Tiles, Minimum>(p, b, p.rows.q + row * p.rows.padded_in + block * kInt4Block, sums, sum);
    if constexpr (Minimum) add_minima<Tokens, Tiles>(p, tile, block, sums, c);
  }
  for (int t = 0; t < Tokens; ++t) {
    for (int i = 0; i < Tiles; ++i) {
      alignas(64) float total[kTileOut];
      _mm512_store_ps(total, Minimum ? _mm512_add_ps(sum[t][i], c[t][i]) : sum[t][i]);
      write_tile(p, row + t, tile + i, total);
    }
  }
}

// Tokens more rows of a panel and one block: their sums are in memory.
template <int Tokens, int Tiles, bool Minimum>
inline __attribute__((always_inline)) void pass(const Int4Product& p, const Block<Tiles>& b, std::size_t row,
                                                std::size_t block, __m512 (*sums)[Tiles]) {
  __m512 sum[Tokens][Tiles];
#pragma GCC unroll 8
  for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 8
    for (int i = 0; i < Tiles; ++i) sum[t][i] = sums[t][i];
  }
  add_block<Tokens, Tiles, Minimum>(p, b, p.rows.q + row * p.rows.padded_in + block * kInt4Block,
                           p.rows.sum + row * p.blocks + block, sum);
#pragma GCC unroll 8
  for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 8
    for (int i = 0; i < Tiles; ++i) sums[t][i] = sum[t][i];
  }
}

#ifndef PT
#define PT 4
#endif
constexpr std::size_t kPassTokens = PT;

template <int Tokens, int Tiles, bool Minimum>
void finish(const Int4Product& p, std::size_t row, std::size_t tile, const __m512 (*sums)[Tiles]) {
  __m512 c[Tokens][Tiles];
  if constexpr (Minimum) minima<Tokens, Tiles>(p, row, tile, c);
  for (int t = 0; t < Tokens; ++t) {
    for (int i = 0; i < Tiles; ++i) {
      alignas(64) float total[kTileOut];
      _mm512_store_ps(total, Minimum ? _mm512_add_ps(sums[t][i], c[t][i]) : sums[t][i]);
      write_tile(p, row + t, tile + i, total);
    }
  }
}

template <int Tiles, bool Minimum>
void panel(const Int4Product& p, Range rows, std::size_t tile) {
  __m512 sums[kPanelRows][Tiles];
  const std::size_t count = rows.last - rows.first;
  for (std::size_t t = 0; t < count; ++t) {
    for (__m512& lanes : sums[t]) lanes = _mm512_setzero_ps();
  }
  for (std::size_t block = 0; block < p.blocks; ++block) {
    const Block<Tiles> b(p, tile, block);
    std::size_t t = 0;
    for (; t + kPassTokens <= count; t += kPassTokens) pass<kPassTokens, Tiles, Minimum>(p, b, rows.first + t, block, sums + t);
    for (; t < count; ++t) pass<1, Tiles, Minimum>(p, b, rows.first + t, block, sums + t);
  }
  std::size_t t = 0;
  for (; t + kPassTokens <= count; t += kPassTokens) finish<kPassTokens, Tiles, Minimum>(p, rows.first + t, tile, sums + t);
  for (; t < count; ++t) finish<1, Tiles, Minimum>(p, rows.first + t, tile, sums + t);
}

template <int Tiles, bool Minimum>
void group(const Int4Product& p, Range rows, std::size_t tile) {
  std::size_t row = rows.first;
  if (rows.last - row == 1) return stream<1, Tiles, Minimum>(p, row, tile);
  for (; row < rows.last; row += kPanelRows) {
    panel<Tiles, Minimum>(p, {row, row + kPanelRows < rows.last ? row + kPanelRows : rows.last}, tile);
  }
}

template <bool Minimum>
void multiply_tiles(const Int4Product& p, Range rows, Range tiles) {
  std::size_t tile = tiles.first;
  for (; tile + 2 <= tiles.last; tile += 2) group<2, Minimum>(p, rows, tile);
  for (; tile < tiles.last; ++tile) group<1, Minimum>(p, rows, tile);
}

void multiply(const Int4Product& p, Range rows, Range tiles) {
  if (p.weight_minimum == nullptr) return multiply_tiles<false>(p, rows, tiles);
  multiply_tiles<true>(p, rows, tiles);
}

}  // namespace

const Int4Kernel int4_kernel_avx512vnni = {quantize_rows<0>, multiply};

}  // namespace kvfold

#endif
