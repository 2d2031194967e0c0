// quantizers/hadamard.py, and eden.py behind it: 16 columns at a time, which
// stay in the second cache from the first addition to the last.

#include <utility>

#include "native.h"

// A loop over columns, which are apart: all at once, and not one by one.
#if defined(__clang__)
#define APART _Pragma("clang loop vectorize(assume_safety)")
#else
#define APART _Pragma("GCC ivdep") _Pragma("GCC unroll 1")
#endif
#define EACH(i) APART for (int64_t i = 0; i < kColumns; ++i)

namespace {

constexpr int64_t kColumns = 16, kMostRows = 4096;
using Row = float[kColumns];
using Numbers = ffi::Span<const float>;

// 16 columns of blocks of `rows` values. There may be fewer of the last, and of
// the d values that are in the blocks some may be missing at the end.
struct Columns {
  int64_t rows, blocks, d, first;

  INLINE int64_t At(int64_t row) const { return row * blocks + first; }
  // How many of a row there are.
  INLINE int64_t Of(int64_t row, int64_t d) const {
    int64_t here = std::min(kColumns, blocks - first);
    return std::clamp<int64_t>(d - At(row), 0, here);
  }
};

// A thread's room for them, and for a factor for each row.
struct Room {
  alignas(64) Row z[kMostRows];
  float factors[kMostRows];
};

INLINE void Four(float& a, float& b, float& c, float& d) {
  float sums = a + b, gaps = a - b, others = c + d, rest = c - d;
  a = sums + others, b = gaps + rest, c = sums - others, d = gaps - rest;
}

// Two steps of hadamard._transform, of 16 rows that are `apart`.
template <size_t... k>
INLINE void Sixteen(Row* z, int64_t apart, std::index_sequence<k...>) {
  EACH(i) {
    float v[] = {z[k * apart][i]...};
    Four(v[0], v[4], v[8], v[12]), Four(v[1], v[5], v[9], v[13]);
    Four(v[2], v[6], v[10], v[14]), Four(v[3], v[7], v[11], v[15]);
    Four(v[0], v[1], v[2], v[3]), Four(v[4], v[5], v[6], v[7]);
    Four(v[8], v[9], v[10], v[11]), Four(v[12], v[13], v[14], v[15]);
    ((z[k * apart][i] = v[k]), ...);
  }
}

// The two steps in all parts of `size` rows.
INLINE void Steps(Row* z, int64_t rows, int64_t size) {
  for (Row* end = z + rows; z < end; z += size)
    for (int64_t i = 0; i < size / 16; ++i)
      Sixteen(z + i, size / 16, std::make_index_sequence<16>());
}

// H, without the root.
INLINE void Transform(Row* z, int64_t rows) {
  int64_t inner = rows;  // what the first cache holds
  if (rows > 256) Steps(z, rows, rows), inner /= 16;
  for (Row* end = z + rows; z < end; z += inner) {
    int64_t size = inner;
    for (; size >= 16; size /= 16) Steps(z, inner, size);
    for (int64_t k = 0; size == 4 && k < inner; k += 4)
      EACH(i)
        Four(z[k][i], z[k + 1][i], z[k + 2][i], z[k + 3][i]);
  }
}

// sqrt(1 / rows), of powers of four.
INLINE float Share(int64_t rows) { return std::sqrt(1.f / rows); }

// The signs D of a seed, times a factor.
INLINE void Signs(int64_t rows, uint32_t seed, float factor, float* signs) {
  for (int64_t i = 0; i < rows; ++i)
    signs[i] = Random(seed, i) >> 31 ? -factor : factor;
}

INLINE void Multiply(int64_t rows, const float* factors, Row* z) {
  for (int64_t row = 0; row < rows; ++row)
    EACH(i) z[row][i] *= factors[row];
}

// Copies the n first of 16 numbers.
template <typename Number>
INLINE void Copy(const Number* from, int64_t n, Number* to) {
  if (n == kColumns)
    std::memcpy(to, from, kColumns * sizeof(Number));
  else
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

INLINE void Read(const Columns& at, const float* x, Row* z) {
  for (int64_t row = 0; row < at.rows; ++row) {
    Row here = {};
    Copy(x + at.At(row), at.Of(row, at.d), here);
    std::memcpy(z[row], here, sizeof(Row));
  }
}

// Writes value(row, i) of all that are there.
template <typename Value>
INLINE void Write(const Columns& at, int64_t d, Value value, float* out) {
  for (int64_t row = 0; row < at.rows; ++row) {
    Row here;
    EACH(i) here[i] = value(row, i);
    Copy(here, at.Of(row, d), out + at.At(row));
  }
}

// Turns what is in the room, but for the last factor.
INLINE void Turn(int64_t rows, uint32_t seed, int64_t turns, float factor,
                 Room& room) {
  for (int64_t turn = 0; turn < turns; ++turn) {
    Signs(rows, seed + turn, turn ? Share(rows) : factor, room.factors);
    Multiply(rows, room.factors, room.z);
    Transform(room.z, rows);
  }
}

INLINE void TurnBack(int64_t rows, uint32_t seed, int64_t turns, Room& room) {
  for (int64_t turn = turns; turn--;) {
    Transform(room.z, rows);
    Signs(rows, seed + turn, Share(rows), room.factors);
    if (turn) Multiply(rows, room.factors, room.z);
  }
}

FOR_ALL_CPUS void To(const Columns& at, const float* x, uint32_t seed,
                     Room& room, float* y) {
  Read(at, x, room.z);
  Turn(at.rows, seed, 1, 1, room);
  const float share = Share(at.rows);
  auto value = [&](int64_t row, int64_t i) ALWAYS {
    return room.z[row][i] * share;
  };
  Write(at, at.rows * at.blocks, value, y);
}

FOR_ALL_CPUS void Back(const Columns& at, const float* y, uint32_t seed,
                       Room& room, float* x) {
  Columns all = at;
  all.d = at.rows * at.blocks;
  Read(all, y, room.z);
  TurnBack(at.rows, seed, 1, room);
  auto value = [&](int64_t row, int64_t i) ALWAYS {
    return room.z[row][i] * room.factors[row];
  };
  Write(at, at.d, value, x);
}

// Adds up what leaf(row, sums) gives of each row, in halves: eden._folded.
template <int64_t kSums, typename Leaf>
INLINE void Fold(int64_t rows, Leaf leaf, float* total) {
  float open[13][kSums * kColumns];  // [k] waits for as much: for 2^k rows
  int64_t level = 0;
  for (int64_t k = 0, row = 0; k < rows; ++k) {
    float sums[kSums * kColumns];
    leaf(row, sums);
    int64_t bit = rows / 2;
    for (level = 0; k >> level & 1; ++level, bit /= 2) {
      row ^= bit;
      APART for (int64_t i = 0; i < kSums * kColumns; ++i)
        sums[i] += open[level][i];
    }
    row ^= bit;  // counts with the bits the other way round
    std::memcpy(open[level], sums, sizeof(sums));
  }
  std::memcpy(total, open[level], sizeof(open[level]));
}

// eden.LEVELS above 0, and the squares of the ends of their cells.
struct Levels {
  float sizes[8] = {}, ends[7] = {};
};

// Codes of a row for its shares of the square, and the sums |u| q and q^2.
template <int kHalf>
INLINE void Nearest(const Levels& levels, const float* u,
                    const float* per_square, uint8_t* codes, float* sums) {
  const Levels own = levels;  // which nothing below can change
  int32_t code[kColumns];
  EACH(i) {
    float share = u[i] * u[i] * per_square[i], size = own.sizes[0];
    int32_t number = u[i] < 0 ? kHalf : 0;
    for (int j = 1; j < kHalf; ++j) {
      bool beyond = share >= own.ends[j - 1];
      number += beyond;
      size = beyond ? own.sizes[j] : size;
    }
    code[i] = number;
    sums[i] = std::fabs(u[i]) * size;
    sums[kColumns + i] = size * size;
  }
  EACH(i) codes[i] = code[i];
}

// Codes of 16 columns, and what is summed up of each: [k] is unit, yy, yq, qq.
template <int kHalf>
INLINE void Encode(const Columns& at, const Levels& levels, Room& room,
                   uint8_t* codes, float* const* found) {
  const float share = Share(at.rows);
  uint32_t most[kColumns] = {};
  float sums[4 * kColumns], *unit = sums, *yy = sums + kColumns;
  for (int64_t row = 0; row < at.rows; ++row)
    EACH(i) {
      room.z[row][i] *= share;
      most[i] = std::max(most[i], Word(std::fabs(room.z[row][i])));
    }
  EACH(i) {  // numerics.power_below
    uint32_t word = std::max<int32_t>(254 - (most[i] >> 23), 1) << 23;
    std::memcpy(unit + i, &word, 4);
  }
  Fold<1>(at.rows, [&](int64_t row, float* square) ALWAYS {
    EACH(i) {
      float u = room.z[row][i] *= unit[i];
      square[i] = u * u;
    }
  }, yy);
  Row per_square;
  EACH(i) per_square[i] = float(at.rows) / (yy[i] > 0 ? yy[i] : 1);
  Fold<2>(at.rows, [&](int64_t row, float* two) ALWAYS {
    uint8_t here[kColumns];
    Nearest<kHalf>(levels, room.z[row], per_square, here, two);
    Copy(here, at.Of(row, at.rows * at.blocks), codes + at.At(row));
  }, sums + 2 * kColumns);
  for (int64_t k = 0; k < 4; ++k)
    Copy(sums + k * kColumns, at.Of(0, at.blocks), found[k] + at.first);
}

FOR_ALL_CPUS void EdenEncode(const Columns& at, const Levels& levels, int half,
                             const float* x, uint32_t seed, int64_t turns,
                             float factor, Room& room, uint8_t* codes,
                             float* const* found) {
  Read(at, x, room.z);
  Turn(at.rows, seed, turns, factor, room);
  if (half == 1) Encode<1>(at, levels, room, codes, found);
  if (half == 2) Encode<2>(at, levels, room, codes, found);
  if (half == 4) Encode<4>(at, levels, room, codes, found);
  if (half == 8) Encode<8>(at, levels, room, codes, found);
}

FOR_ALL_CPUS void EdenDecode(const Columns& at, const float* values,
                             const uint8_t* codes, const float* scales,
                             uint32_t seed, int64_t turns, Room& room,
                             float* x) {
  Row scale = {};
  Copy(scales + at.first, at.Of(0, at.blocks), scale);
  for (int64_t row = 0; row < at.rows; ++row) {
    uint8_t here[kColumns] = {};
    Copy(codes + at.At(row), at.Of(row, at.rows * at.blocks), here);
    EACH(i) room.z[row][i] = values[here[i]];
  }
  TurnBack(at.rows, seed, turns, room);
  auto value = [&](int64_t row, int64_t i) ALWAYS {
    return room.z[row][i] * room.factors[row] * scale[i] + 0.f;
  };
  Write(at, at.d, value, x);
}

// Vectors of d values; the leading axes of all arrays are those of `vmap`.
struct Vectors {
  int64_t count, d, rows, blocks;

  template <typename Array>
  Vectors(const U32& seeds, const Array& x, int64_t rows)
      : count(seeds.element_count()),
        d(x.element_count() / count),
        rows(rows),
        blocks((d + rows - 1) / rows) {}

  // work(vector, columns, room) of all columns.
  template <typename Work>
  void Each(ffi::ThreadPool& pool, Work work) const {
    int64_t parts = (blocks + kColumns - 1) / kColumns;
    ForAll(pool, count * parts, [&](int64_t i) {
      static thread_local Room room;
      work(i / parts, Columns{rows, blocks, d, i % parts * kColumns}, room);
    });
  }

  // What belongs to a vector.
  template <typename Array>
  auto Of(Array& array, int64_t vector) const {
    return array.typed_data() + vector * (array.element_count() / count);
  }
};

ffi::Error Hadamard(ffi::ThreadPool pool, F32 from, U32 seeds,
                    ffi::Result<F32> to, int64_t rows, bool back) {
  Vectors all(seeds, back ? *to : from, rows);
  all.Each(pool, [&](int64_t k, const Columns& at, Room& room) {
    uint32_t seed = *all.Of(seeds, k);
    (back ? Back : To)(at, all.Of(from, k), seed, room, all.Of(*to, k));
  });
  return ffi::Error::Success();
}

ffi::Error EncodeEden(ffi::ThreadPool pool, F32 x, U32 seeds,
                      ffi::Result<U8> codes, ffi::Result<F32> unit,
                      ffi::Result<F32> yy, ffi::Result<F32> yq,
                      ffi::Result<F32> qq, int64_t turns, float factor,
                      Numbers sizes, Numbers ends) {
  Vectors all(seeds, x, codes->dimensions()[codes->dimensions().size() - 2]);
  int half = sizes.size();
  Levels levels;
  std::copy_n(sizes.begin(), half, levels.sizes);
  std::copy_n(ends.begin(), half - 1, levels.ends);
  all.Each(pool, [&](int64_t k, const Columns& at, Room& room) {
    float* sums[] = {all.Of(*unit, k), all.Of(*yy, k), all.Of(*yq, k),
                     all.Of(*qq, k)};
    EdenEncode(at, levels, half, all.Of(x, k), *all.Of(seeds, k), turns, factor,
               room, all.Of(*codes, k), sums);
  });
  return ffi::Error::Success();
}

ffi::Error DecodeEden(ffi::ThreadPool pool, U8 codes, F32 scales, U32 seeds,
                      ffi::Result<F32> x_hat, int64_t turns, Numbers sizes) {
  auto shape = codes.dimensions();
  Vectors all(seeds, *x_hat, shape[shape.size() - 2]);
  float values[256] = {};  // of all codes
  for (size_t i = 0; i < sizes.size(); ++i)
    values[i] = sizes[i], values[i + sizes.size()] = -sizes[i];
  all.Each(pool, [&](int64_t k, const Columns& at, Room& room) {
    EdenDecode(at, values, all.Of(codes, k), all.Of(scales, k),
               *all.Of(seeds, k), turns, room, all.Of(*x_hat, k));
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moniqua_hadamard, Hadamard,
    Bound().Arg<F32>().Arg<U32>().Ret<F32>().Attr<int64_t>("rows").Attr<bool>(
        "back"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moniqua_eden_encode, EncodeEden,
    Bound().Arg<F32>().Arg<U32>().Ret<U8>().Ret<F32>().Ret<F32>().Ret<F32>()
        .Ret<F32>().Attr<int64_t>("turns").Attr<float>("factor")
        .Attr<Numbers>("sizes").Attr<Numbers>("ends"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moniqua_eden_decode, DecodeEden,
    Bound().Arg<U8>().Arg<F32>().Arg<U32>().Ret<F32>().Attr<int64_t>("turns")
        .Attr<Numbers>("sizes"));
