// Int4Linear over a vector layer. An instruction set's file includes it inside its own anonymous namespace, after
// defining Simd:
//
//   F, kLanes                   floats of kLanes outputs: 16 or 8
//   kColumns, kStreamColumns    how many F of outputs are taken at once; where there is one row
//   kRows, kFinishRows          how many rows pass by a block's codes at once, and by its minima
//   zero, set, add, mul         of F; load, store: anywhere; halves: float16 as F
//   Codes, unpack               a block's codes of kLanes outputs, read once for many rows
//   dots                        products of Codes and rows of activations, as F
//
// Each output and row has the same float operations in the same order, whatever Simd is.

using F = Simd::F;

constexpr std::size_t kPanelRows = 128;  // rows whose sums stay in the core's first cache
constexpr std::size_t kColumnsOfTile = kTileOut / Simd::kLanes;

template <int Columns>
struct Block {
  Simd::Codes codes[Columns];
  F scale[Columns];
};

// The place of a column's part of a block among tiles of `size` numbers, 16 outputs side by side.
inline std::size_t place(const Int4Product& p, std::size_t column, std::size_t block, std::size_t size) {
  const std::size_t tile = column / kColumnsOfTile, part = column % kColumnsOfTile;
  return (tile * p.blocks + block) * size + part * Simd::kLanes;
}

inline const std::uint8_t* codes_at(const Int4Product& p, std::size_t column, std::size_t block) {
  return p.weight + place(p, column, block, kInt4BlockBytes / kGroupIn) * kGroupIn;
}

inline F halves_at(const std::uint16_t* half, const Int4Product& p, std::size_t column, std::size_t block) {
  return Simd::halves(half + place(p, column, block, kTileOut));
}

template <int Columns>
KVFOLD_INLINE Block<Columns> block_at(const Int4Product& p, std::size_t column, std::size_t block) {
  Block<Columns> b;
#pragma GCC unroll 8
  for (int i = 0; i < Columns; ++i) {
    b.codes[i] = Simd::unpack(codes_at(p, column + i, block));
    b.scale[i] = halves_at(p.weight_scale, p, column + i, block);
  }
  return b;
}

template <int Rows, int Columns>
KVFOLD_INLINE void clear(F (&sums)[Rows][Columns]) {
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < Columns; ++i) sums[r][i] = Simd::zero();
  }
}

// a += a block's products times its scales.
template <int Rows, int Columns>
KVFOLD_INLINE void add_block(const Int4Product& p, const Block<Columns>& b, std::size_t row, std::size_t block,
                             F (*a)[Columns]) {
  F dots[Rows][Columns];
  Simd::dots(p, b.codes, row, block, dots);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < Columns; ++i) a[r][i] = Simd::add(a[r][i], Simd::mul(dots[r][i], b.scale[i]));
  }
}

// c += a block's minima times the sums of activations.
template <int Rows, int Columns>
KVFOLD_INLINE void add_minima(const Int4Product& p, std::size_t row, std::size_t column, std::size_t block,
                              F (&c)[Rows][Columns]) {
#pragma GCC unroll 8
  for (int i = 0; i < Columns; ++i) {
    const F minimum = halves_at(p.weight_minimum, p, column + i, block);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const F sum = Simd::set(p.rows.sum[(row + r) * p.blocks + block]);
      c[r][i] = Simd::add(c[r][i], Simd::mul(sum, minimum));
    }
  }
}

// y = sum * scale + bias; the last column may have fewer outputs than F.
inline void write(const Int4Product& p, std::size_t row, std::size_t first, F sum) {
  F scaled = Simd::mul(sum, Simd::set(p.rows.scale[row]));
  float* y = p.y + row * p.out_features + first;
  if (first + Simd::kLanes <= p.out_features) {
    if (p.bias != nullptr) scaled = Simd::add(scaled, Simd::load(p.bias + first));
    return Simd::store(y, scaled);
  }
  float lanes[Simd::kLanes];
  Simd::store(lanes, scaled);
  for (std::size_t i = 0; first + i < p.out_features; ++i) {
    y[i] = p.bias == nullptr ? lanes[i] : lanes[i] + p.bias[first + i];
  }
}

template <int Rows, int Columns>
inline void write_rows(const Int4Product& p, std::size_t row, std::size_t column, const F (&sums)[Rows][Columns]) {
  for (int r = 0; r < Rows; ++r) {
    for (int i = 0; i < Columns; ++i) write(p, row + r, (column + i) * Simd::kLanes, sums[r][i]);
  }
}

// The sums of some rows with their c, written. It is a pass of its own over the minima: a block has a pair of
// float operations for each, and its codes need the registers.
template <bool Minima, int Rows, int Columns>
void finish(const Int4Product& p, std::size_t row, std::size_t column, const F (*sums)[Columns]) {
  F a[Rows][Columns], c[Rows][Columns];
  clear(c);
  if constexpr (Minima) {
    for (std::size_t block = 0; block < p.blocks; ++block) add_minima(p, row, column, block, c);
  }
  for (int r = 0; r < Rows; ++r) {
    for (int i = 0; i < Columns; ++i) a[r][i] = Minima ? Simd::add(sums[r][i], c[r][i]) : sums[r][i];
  }
  write_rows(p, row, column, a);
}

// Asks for what the same columns read 8 KiB later, or the next columns where these end before: by itself a core that
// computes so much a byte has too few lines on their way.
template <bool Minima, int Columns>
KVFOLD_INLINE void prefetch(const Int4Product& p, std::size_t column, std::size_t block) {
  constexpr std::size_t kTiles = (Columns + kColumnsOfTile - 1) / kColumnsOfTile;
  constexpr std::size_t kAhead = 8192 / kInt4BlockBytes / kTiles;  // in blocks
  const std::size_t ahead = block + (kAhead < p.blocks ? kAhead : p.blocks);
  const std::size_t wrapped = ahead < p.blocks ? 0 : 1;
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kTiles; ++i) {
    const std::size_t later = column + i * kColumnsOfTile + wrapped * Columns, of_block = ahead - wrapped * p.blocks;
    const std::uint8_t* codes = codes_at(p, later, of_block);
#pragma GCC unroll 8
    for (std::size_t line = 0; line < kInt4BlockBytes; line += 64) __builtin_prefetch(codes + line);
    const std::size_t numbers = place(p, later, of_block, kTileOut);
    __builtin_prefetch(p.weight_scale + numbers);
    if constexpr (Minima) __builtin_prefetch(p.weight_minimum + numbers);
  }
}

// body(first, its number as a type) for `count` rows, so many at once, then one by one.
template <int AtOnce, typename Body>
KVFOLD_INLINE void in_groups(std::size_t count, const Body& body) {
  std::size_t r = 0;
  for (; r + AtOnce <= count; r += AtOnce) body(r, std::integral_constant<int, AtOnce>());
  for (; r < count; ++r) body(r, std::integral_constant<int, 1>());
}

// Many rows: each block's codes are unpacked once and rows pass by; their sums are in memory.
template <bool Minima, int Columns>
void panel(const Int4Product& p, Range rows, std::size_t column) {
  F sums[kPanelRows][Columns];
  const std::size_t count = rows.last - rows.first;
  for (std::size_t r = 0; r < count; ++r) {
    for (F& sum : sums[r]) sum = Simd::zero();
  }
  for (std::size_t block = 0; block < p.blocks; ++block) {
    prefetch<Minima, Columns>(p, column, block);
    const Block<Columns> b = block_at<Columns>(p, column, block);
    in_groups<Simd::kRows>(count, [&](std::size_t r, auto size) {
      add_block<decltype(size)::value>(p, b, rows.first + r, block, sums + r);
    });
  }
  in_groups<Simd::kFinishRows>(count, [&](std::size_t r, auto size) {
    finish<Minima, decltype(size)::value, Columns>(p, rows.first + r, column, sums + r);
  });
}

// One row: its sums are registers, and the weight streams by.
template <bool Minima, int Columns>
void stream(const Int4Product& p, std::size_t row, std::size_t column) {
  F a[1][Columns], c[1][Columns];
  clear(a);
  clear(c);
  for (std::size_t block = 0; block < p.blocks; ++block) {
    prefetch<Minima, Columns>(p, column, block);
    add_block<1>(p, block_at<Columns>(p, column, block), row, block, a);
    if constexpr (Minima) add_minima(p, row, column, block, c);
  }
  for (int i = 0; Minima && i < Columns; ++i) a[0][i] = Simd::add(a[0][i], c[0][i]);
  write_rows(p, row, column, a);
}

// Columns at once, then one by one.
template <int Columns, typename Body>
inline void in_columns(Range columns, const Body& body) {
  std::size_t column = columns.first;
  for (; column + Columns <= columns.last; column += Columns) body(column, std::integral_constant<int, Columns>());
  for (; column < columns.last; ++column) body(column, std::integral_constant<int, 1>());
}

template <bool Minima>
void multiply_columns(const Int4Product& p, Range rows, Range columns) {
  if (rows.last - rows.first == 1) {
    return in_columns<Simd::kStreamColumns>(columns, [&](std::size_t column, auto count) {
      stream<Minima, decltype(count)::value>(p, rows.first, column);
    });
  }
  in_columns<Simd::kColumns>(columns, [&](std::size_t column, auto count) {
    for (std::size_t row = rows.first; row < rows.last; row += kPanelRows) {
      const std::size_t last = row + kPanelRows < rows.last ? row + kPanelRows : rows.last;
      panel<Minima, decltype(count)::value>(p, {row, last}, column);
    }
  });
}

inline void multiply(const Int4Product& p, Range rows, Range tiles) {
  const Range columns = {tiles.first * kColumnsOfTile, tiles.last * kColumnsOfTile};
  if (p.weight_minimum == nullptr) return multiply_columns<false>(p, rows, columns);
  multiply_columns<true>(p, rows, columns);
}
