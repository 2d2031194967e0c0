// The codec of quantizers/moniqua.py in one pass over memory: in tiles of 1024
// values, which stay in the first cache.

#include "planes.h"

namespace {

constexpr int64_t kLanes = 128, kMost = 8 * kTile;
constexpr float kReach = 1 << 22;
constexpr uint32_t kNaN = 0x7FC00000;

struct Header {
  float bound, step, inverse;
  uint32_t seed;
};

// What is checked of a message, or of a chunk of it.
struct Checks {
  uint32_t turns[kLanes] = {}, largest = 0;

  void Add(const Checks& more) {
    largest = std::max(largest, more.largest);
    for (int64_t i = 0; i < kLanes; ++i) turns[i] ^= more.turns[i];
  }
  uint32_t Fold() const {  // as in digest.py
    uint32_t folded = 0;
    for (int64_t i = 0; i < kLanes; ++i) {
      uint32_t low = turns[i] & 255, left = i % 32;
      folded ^= low << left | low >> (32 - left) % 32;
    }
    return folded;
  }
};

// The lowest bits of a whole number, as XLA makes integers of floats: of a NaN
// 0, and saturated (the lowest bits of the smallest integer are 0, too).
INLINE uint32_t Low(float whole) {
  int32_t n = std::fabs(whole) < 0x1p31f ? int32_t(whole) : 0;
  return whole >= 0x1p31f ? -1 : n;
}

// dither.uniform - 1/2 of a tile, made once for all messages of one seed.
struct Dither {
  float u[kTile];
  int64_t start = -1;
  uint32_t seed = 0;

  INLINE const float* Of(uint32_t its, int64_t from, int64_t n) {
    if (start == from && seed == its) return u;
    start = from, seed = its;
    uint32_t first = seed + uint32_t(from) * kGolden;
    for (uint32_t i = 0; i < uint32_t(n); ++i)
      u[i] = Unit(Random(first, i)) - 0.5f;
    return u;
  }
};

// y / s - u, from which both ends count.
INLINE float Place(const Header& about, float y, float u) {
  return y * about.inverse - u;
}

// The value of a code for who holds y, and the turn that y tells.
INLINE float Value(const Header& about, int bits, float code, float y, float u,
                   float& k) {
  const float levels = 1 << bits, share = 1 / levels;
  k = std::rint((Place(about, y, u) - code) * share);
  return (code + levels * k + u) * about.step + 0.f;
}

// Codes, not masked yet, of n values of a tile.
INLINE void Write(const Header& about, int bits, const float* x, const float* u,
                  int64_t n, uint8_t* codes, Checks& checks) {
  int32_t most = checks.largest;
  for (int64_t row = 0; row < n; row += kLanes)
    for (int64_t i = 0, end = std::min(kLanes, n - row); i < end; ++i) {
      float here = x[row + i];
      uint32_t low = Low(std::rint(Place(about, here, u[row + i])));
      codes[row + i] = uint8_t(low);
      checks.turns[i] ^= uint32_t(int32_t(low) >> bits);
      most = std::max(most, int32_t(Word(std::fabs(here))));
    }
  checks.largest = most;
}

FOR_ALL_CPUS void EncodeChunk(const Header& about, const Planes& at,
                              const float* x, int64_t from, int64_t to,
                              uint8_t* out, Checks& checks) {
  uint8_t codes[kMost];
  Dither dither;
  auto write = [&](int64_t i, int64_t n, uint8_t* codes) ALWAYS {
    const float* u = dither.Of(about.seed, i, n);
    Write(about, at.bits, x + i, u, n, codes, checks);
  };
  for (int64_t place = from; place < std::min(to, at.length); place += kTile)
    for (int64_t s = 0; s < at.count; ++s) {
      write(s * at.length + place, kTile, codes);
      Tile<true>(at, s, place, codes, out);
    }
  if (from < at.length) return;
  for (int64_t i = at.whole; i < at.size; i += kTile)
    write(i, std::min(kTile, at.size - i), codes + i - at.whole);
  Rest<true>(at, codes, out);
}

// What came in on the edges.
struct Messages {
  const Header* abouts;
  std::vector<uint8_t*> packed;
};

// use(start, n, codes) of each tile of a chunk; the codes of the next message
// are kMost behind.
template <typename Use>
INLINE void ReadChunk(const Planes& at, const Messages& messages, int64_t from,
                      int64_t to, Use use) {
  int64_t edges = messages.packed.size();
  std::vector<uint8_t> codes(edges * kMost);
  for (int64_t place = from; place < std::min(to, at.length); place += kTile)
    for (int64_t s = 0; s < at.count; ++s) {
      for (int64_t e = 0; e < edges; ++e)
        Tile<false>(at, s, place, &codes[e * kMost], messages.packed[e]);
      use(s * at.length + place, kTile, codes.data());
    }
  if (from < at.length) return;
  for (int64_t e = 0; e < edges; ++e)
    Rest<false>(at, &codes[e * kMost], messages.packed[e]);
  for (int64_t i = at.whole; i < at.size; i += kTile)
    use(i, std::min(kTile, at.size - i), codes.data() + i - at.whole);
}

template <bool kDigest>
INLINE void Look(const Header& about, int bits, const float* y, const float* u,
                 const uint8_t* codes, int64_t n, Checks& checks) {
  int32_t most = checks.largest;
  for (int64_t row = 0; row < n; row += kLanes)
    for (int64_t i = 0, end = std::min(kLanes, n - row); i < end; ++i) {
      float k, here = y[row + i];
      float x_hat = Value(about, bits, codes[row + i], here, u[row + i], k);
      float gap = std::fabs(x_hat - here);
      if (kDigest) {
        checks.turns[i] ^= Low(k);
        gap = 0.5f + gap * about.inverse * (1.f / (1 << bits));
        gap = gap < 1.5f ? gap : 1.5f;  // so is a NaN
      }
      most = std::max(most, int32_t(Word(gap)));
    }
  checks.largest = most;
}

FOR_ALL_CPUS void LookChunk(bool digest, const Planes& at,
                            const Messages& messages, const float* y,
                            int64_t from, int64_t to, Checks* checks) {
  Dither dither;
  ReadChunk(at, messages, from, to, [&](int64_t start, int64_t n,
                                        const uint8_t* codes) ALWAYS {
    for (size_t e = 0; e < messages.packed.size(); ++e, codes += kMost) {
      const Header& about = messages.abouts[e];
      const float* u = dither.Of(about.seed, start, n);
      if (digest)
        Look<true>(about, at.bits, y + start, u, codes, n, checks[e]);
      else
        Look<false>(about, at.bits, y + start, u, codes, n, checks[e]);
    }
  });
}

FOR_ALL_CPUS void DecodeChunk(const Planes& at, const Messages& messages,
                              const float* y, int64_t from, int64_t to,
                              float* x_hat) {
  const Header& about = *messages.abouts;
  Dither dither;
  ReadChunk(at, messages, from, to, [&](int64_t start, int64_t n,
                                        const uint8_t* codes) ALWAYS {
    const float *u = dither.Of(about.seed, start, n), *here = y + start;
    float k, *out = x_hat + start;
    for (int64_t i = 0; i < n; ++i)
      out[i] = Value(about, at.bits, codes[i], here[i], u[i], k);
  });
}

// Pulls of the edges that have a weight, and of the values that are finite.
FOR_ALL_CPUS void MixChunk(const Header& mine, const Planes& at,
                           const Messages& messages, const float* weights,
                           const float* x, const float* onto, int64_t from,
                           int64_t to, float* out) {
  Dither dither;
  float own[kTile], total[kTile];
  ReadChunk(at, messages, from, to, [&](int64_t start, int64_t n,
                                        const uint8_t* codes) ALWAYS {
    const float *y = x + start, *u = dither.Of(mine.seed, start, n);
    for (int64_t i = 0; i < n; ++i) {
      own[i] = (std::rint(Place(mine, y[i], u[i])) + u[i]) * mine.step + 0.f;
      total[i] = 0;
    }
    for (size_t e = 0; e < messages.packed.size(); ++e, codes += kMost) {
      const Header& about = messages.abouts[e];
      u = dither.Of(about.seed, start, n);
      float k, weight = weights[e];
      for (int64_t i = 0; i < n && weight != 0; ++i) {
        float x_hat = Value(about, at.bits, codes[i], y[i], u[i], k);
        float apart = x_hat - own[i], pull = weight * apart;
        total[i] += std::fabs(apart) < INFINITY ? pull : 0.f;
      }
    }
    for (int64_t i = 0; i < n; ++i) out[start + i] = onto[start + i] + total[i];
  });
}

// What is done with all chunks.
struct Rows : Chunks {
  using Chunks::Chunks, Chunks::Of;

  // work(row, from, to, checks); returns the checks of all rows.
  template <typename Work>
  std::vector<Checks> Checked(ffi::ThreadPool& pool, int64_t edges,
                              Work work) const {
    std::vector<Checks> checks(count * chunks * edges);
    Each(pool, [&](int64_t i, int64_t row, int64_t from, int64_t to) {
      work(row, from, to, &checks[i * edges]);
    });
    std::vector<Checks> joined(count * edges);
    for (size_t i = 0; i < checks.size(); ++i)
      joined[i / (chunks * edges) * edges + i % edges].Add(checks[i]);
    return joined;
  }

  const Header* HeadersOf(const U32& abouts, int64_t row) const {
    return reinterpret_cast<const Header*>(Of(abouts, row));
  }
  Messages Of(const ffi::RemainingArgs& payloads, const Header* abouts,
              int64_t row) const {
    Messages messages{abouts, {}};
    for (size_t e = 0; e < payloads.size(); ++e) {
      U8 payload = *payloads.get<U8>(e);
      messages.packed.push_back(Of(payload, row));
    }
    return messages;
  }
};

ffi::Error Encode(ffi::ThreadPool pool, F32 x, U32 abouts,
                  ffi::Result<U8> payloads, int64_t bits, bool digest) {
  Rows rows(x, bits);
  auto write = [&](int64_t row, int64_t from, int64_t to, Checks* checks) {
    EncodeChunk(*rows.HeadersOf(abouts, row), rows.at, rows.Of(x, row), from,
                to, rows.Of(*payloads, row), *checks);
  };
  std::vector<Checks> found = rows.Checked(pool, 1, write);
  for (int64_t row = 0; row < rows.count; ++row) {
    const Header& about = *rows.HeadersOf(abouts, row);
    uint32_t limit = Word(std::fabs(kReach * about.step));
    uint32_t bound = found[row].largest < limit ? Word(about.bound) : kNaN;
    uint32_t end[] = {bound, about.seed, found[row].Fold()};
    std::memcpy(rows.Of(*payloads, row) + rows.at.bytes, end, 8 + 4 * digest);
  }
  return ffi::Error::Success();
}

ffi::Error LookAtAll(ffi::ThreadPool pool, F32 y, U32 abouts,
                     ffi::RemainingArgs payloads, ffi::Result<U32> largest,
                     ffi::Result<U32> turns, int64_t bits, bool digest) {
  Rows rows(y, bits);
  auto look = [&](int64_t row, int64_t from, int64_t to, Checks* checks) {
    auto messages = rows.Of(payloads, rows.HeadersOf(abouts, row), row);
    LookChunk(digest, rows.at, messages, rows.Of(y, row), from, to, checks);
  };
  std::vector<Checks> found = rows.Checked(pool, payloads.size(), look);
  for (size_t i = 0; i < found.size(); ++i) {
    largest->typed_data()[i] = found[i].largest << 8 * digest;
    std::copy_n(found[i].turns, kLanes, turns->typed_data() + i * kLanes);
  }
  return ffi::Error::Success();
}

ffi::Error Decode(ffi::ThreadPool pool, F32 y, U32 abouts,
                  ffi::RemainingArgs payloads, ffi::Result<F32> x_hat,
                  int64_t bits) {
  Rows rows(y, bits);
  rows.Each(pool, [&](int64_t, int64_t row, int64_t from, int64_t to) {
    auto message = rows.Of(payloads, rows.HeadersOf(abouts, row), row);
    DecodeChunk(rows.at, message, rows.Of(y, row), from, to,
                rows.Of(*x_hat, row));
  });
  return ffi::Error::Success();
}

ffi::Error Mix(ffi::ThreadPool pool, F32 x, F32 onto, U32 abouts, F32 weights,
               ffi::RemainingArgs payloads, ffi::Result<F32> mixed,
               int64_t bits) {
  Rows rows(x, bits);
  rows.Each(pool, [&](int64_t, int64_t row, int64_t from, int64_t to) {
    const Header* headers = rows.HeadersOf(abouts, row);  // the own one first
    MixChunk(*headers, rows.at, rows.Of(payloads, headers + 1, row),
             rows.Of(weights, row), rows.Of(x, row), rows.Of(onto, row), from,
             to, rows.Of(*mixed, row));
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moniqua_encode, Encode,
    Bound().Arg<F32>().Arg<U32>().Ret<U8>().Attr<int64_t>("bits").Attr<bool>(
        "digest"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moniqua_decode, Decode,
    Bound().Arg<F32>().Arg<U32>().RemainingArgs().Ret<F32>().Attr<int64_t>(
        "bits"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moniqua_look, LookAtAll,
    Bound().Arg<F32>().Arg<U32>().RemainingArgs().Ret<U32>().Ret<U32>()
        .Attr<int64_t>("bits").Attr<bool>("digest"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moniqua_mix, Mix,
    Bound().Arg<F32>().Arg<F32>().Arg<U32>().Arg<F32>().RemainingArgs()
        .Ret<F32>().Attr<int64_t>("bits"));
