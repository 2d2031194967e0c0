// wire/stripes.py: codes in planes, which a thread packs or unpacks in tiles of 1024.

#ifndef MONIQUA_PLANES_H_
#define MONIQUA_PLANES_H_

#include "native.h"

namespace {

constexpr int64_t kTile = 1024;
constexpr int64_t kChunk = 1 << 16;  // values that a thread takes at a time

// Where the codes of a stripe, and of the rest, lie in planes.
struct Planes {
  int bits, count;
  int64_t size, length, whole, bytes;

  Planes(int64_t size, int bits) : bits(bits), size(size) {
    count = 8 / (bits & -bits);
    length = size / (count * kTile) * kTile;
    whole = count * length;
    bytes = whole * bits / 8;
    Each(size - whole, [&](int, int, int64_t, int64_t more) { bytes += more; });
  }

  // visit(width, low, first byte, bytes) of the planes of so many codes.
  template <typename Visit>
  INLINE void Each(int64_t codes, Visit visit) const {
    int64_t first = 0;
    for (int width = 8, low = 0; width; width /= 2) {
      if (!(bits & width)) continue;
      int64_t bytes = (codes * width + 7) / 8;
      visit(width, low, first, bytes);
      low += width, first += bytes;
    }
  }
};

template <typename Bytes>
INLINE void MoveSome(const uint8_t* from, int right, Bytes mask, int left,
                     bool more, uint8_t* to) {
  Bytes word, old = 0;
  std::memcpy(&word, from, sizeof(Bytes));
  if (more) std::memcpy(&old, to, sizeof(Bytes));
  word = Bytes(old | Bytes(word >> right & mask) << left);
  std::memcpy(to, &word, sizeof(Bytes));
}

// to = (from >> right & (2^width - 1)) << left of n bytes; to |= if more.
INLINE void Move(const uint8_t* from, int right, int width, int left, bool more,
                 int64_t n, uint8_t* to) {
  const uint64_t mask = 0x0101010101010101u * ((1u << width) - 1);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    MoveSome<uint64_t>(from + i, right, mask, left, more, to + i);
  for (; i < n; ++i)
    MoveSome<uint8_t>(from + i, right, uint8_t(mask), left, more, to + i);
}

// Packs a tile of stripe s, at `place` within the stripe, or unpacks it.
template <bool kPack>
INLINE void Tile(const Planes& at, int64_t s, int64_t place, uint8_t* codes,
                 uint8_t* packed) {
  at.Each(at.whole, [&](int width, int low, int64_t first,
                        int64_t bytes) ALWAYS {
    int64_t beside = bytes / at.length, shift = s / beside * width;
    uint8_t* here = packed + first + s % beside * at.length + place;
    if (kPack)
      Move(codes, low, width, shift, shift, kTile, here);
    else
      Move(here, shift, width, low, low, kTile, codes);
  });
}

// The same of all the codes that the stripes leave over.
template <bool kPack>
INLINE void Rest(const Planes& at, uint8_t* codes, uint8_t* packed) {
  int64_t left = at.size - at.whole;
  packed += at.whole * at.bits / 8;
  at.Each(left, [&](int width, int low, int64_t first, int64_t bytes) ALWAYS {
    for (int64_t shift = 0, i = 0; i < left; shift += width, i += bytes) {
      int64_t n = std::min(bytes, left - i);
      if (kPack)
        Move(codes + i, low, width, shift, shift, n, packed + first);
      else
        Move(packed + first, shift, width, low, low, n, codes + i);
    }
  });
}

// Vectors, each in chunks; the leading axes of all arrays are those of `vmap`.
struct Chunks {
  int64_t size, count;
  Planes at;
  int64_t places, tiled, chunks;

  template <typename Array>
  Chunks(const Array& x, int64_t bits)
      : size(x.dimensions().back()),
        count(x.element_count() / size),
        at(size, int(bits)),
        places(kChunk / at.count),
        tiled((at.length + places - 1) / places),
        chunks(tiled + (at.whole < at.size)) {}

  // work(chunk, row, from, to) of all chunks: tiles at the places [from, to) of
  // all stripes, or behind them the rest.
  template <typename Work>
  void Each(ffi::ThreadPool& pool, Work work) const {
    ForAll(pool, count * chunks, [&](int64_t i) {
      int64_t k = i % chunks, from = k < tiled ? k * places : at.length;
      work(i, i / chunks, from, from + places);
    });
  }

  // What belongs to a row.
  template <typename Array>
  auto Of(Array& array, int64_t row) const {
    return array.typed_data() + row * (array.element_count() / count);
  }
};

}  // namespace

#endif  // MONIQUA_PLANES_H_
