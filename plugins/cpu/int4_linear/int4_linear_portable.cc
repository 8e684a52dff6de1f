// Int4Linear in plain C++, for any machine.
#include <type_traits>

#include "cpu/int4_linear/int4_linear_kernel.h"
#include "cpu/int4_linear/int4_linear_rows.h"

namespace kvfold {
namespace {

// Loops over arrays, eight numbers of 16 bits at a time: compilers vectorise them for any instruction set.
struct Simd {
  static constexpr std::size_t kLanes = kTileOut;
  static constexpr int kStreamColumns = 1, kColumns = 1, kRows = 1, kFinishRows = 1;
  static constexpr std::size_t kBytes = kTileOut * kGroupIn, kGroups = kInt4Block / kGroupIn;
  struct F {
    float lane[kLanes];
  };
  struct Codes {
    std::int16_t code[kGroups][kBytes];
  };

  static F zero() { return {}; }
  static F set(float value) {
    F f;
    for (float& lane : f.lane) lane = value;
    return f;
  }
  static F add(const F& a, const F& b) {
    F f;
    for (std::size_t i = 0; i < kLanes; ++i) f.lane[i] = a.lane[i] + b.lane[i];
    return f;
  }
  static F mul(const F& a, const F& b) {
    F f;
    for (std::size_t i = 0; i < kLanes; ++i) f.lane[i] = a.lane[i] * b.lane[i];
    return f;
  }
  static void store(float* to, const F& f) { std::memcpy(to, f.lane, sizeof f.lane); }
  static F load(const float* from) {
    F f;
    std::memcpy(f.lane, from, sizeof f.lane);
    return f;
  }

  // Of numbers only: a product moves the exponent's bias, subnormal numbers' too.
  static F halves(const std::uint16_t* half) {
    F f;
    for (std::size_t i = 0; i < kLanes; ++i) {
      const float magnitude = bits_float((half[i] & 0x7FFF) << 13) * bits_float(0x77800000);  // 2^112
      f.lane[i] = (half[i] & 0x8000) != 0 ? -magnitude : magnitude;
    }
    return f;
  }

  static Codes unpack(const std::uint8_t* bytes) {
    Codes codes;
    for (std::size_t g = 0; g < kGroups / 2; ++g, bytes += kBytes) {
      for (std::size_t i = 0; i < kBytes; ++i) {
        codes.code[g][i] = bytes[i] & 15;
        codes.code[g + kGroups / 2][i] = bytes[i] >> 4;
      }
    }
    return codes;
  }

  // Eight products of 15 * 127 fit int16.
  static void dots(const Int4Product& p, const Codes (&codes)[1], std::size_t row, std::size_t block,
                   F (&dots)[1][1]) {
    const std::uint8_t* q = p.rows.q + row * p.rows.padded_in + block * kInt4Block;
    std::int16_t sum[kBytes] = {};
    for (std::size_t g = 0; g < kGroups; ++g, q += kGroupIn) {
      std::int16_t activation[8];  // two outputs' four
      for (std::size_t i = 0; i < 8; ++i) activation[i] = static_cast<std::int8_t>(q[i % kGroupIn]);
      for (std::size_t l = 0; l < kBytes; l += 8) {
        for (std::size_t i = 0; i < 8; ++i) {
          sum[l + i] = static_cast<std::int16_t>(sum[l + i] + codes[0].code[g][l + i] * activation[i]);
        }
      }
    }
    const std::size_t at = row * p.blocks + block;
    for (std::size_t o = 0; o < kLanes; ++o) {
      const std::int16_t* four = sum + o * kGroupIn;
      const std::int32_t counted = float_bits(p.rows.start[at]) + four[0] + four[1] + four[2] + four[3];
      dots[0][0].lane[o] = bits_float(counted) - p.rows.zero[at];
    }
  }
};

#include "cpu/int4_linear/int4_linear_panels.h"

}  // namespace

const Int4Kernel int4_kernel_portable = {quantize_row_blocks, multiply};

}  // namespace kvfold
