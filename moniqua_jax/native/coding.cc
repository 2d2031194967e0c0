// coding/message.py: buckets of codes as one stream of bits, and back. The
// codewords come from the tables of coding/prefix.py; only omega is made here.

#include "native.h"

namespace {

using S32 = ffi::Buffer<ffi::S32>;
using Table = ffi::Span<const int32_t>;

constexpr int64_t kTogether = 1 << 16;  // values that a thread takes at a time

struct Codeword {
  uint32_t value;
  int32_t bits;  // up to 32
};

INLINE int Top(uint32_t n) { return 31 - __builtin_clz(n); }

// elias.omega_text from the right: 0, bin(n), and the same of its bits less 1.
INLINE Codeword Omega(uint32_t n) {
  Codeword word{0, 1};
  for (; n > 1; n = Top(n)) {
    word.value |= n << word.bits;
    word.bits += Top(n) + 1;
  }
  return word;
}

// A message, and how its codes are written.
struct How {
  Codeword words[256];
  int64_t size, width;  // values: of the message, of a bucket
  int64_t buckets, each, parts;  // a part is `each` buckets for one thread
  int zero;                      // takes nothing; -1 if each code has a word
  int longest = 1, most;         // bits of a codeword; of a value with its gap

  How(Table values, Table bits, int64_t size, int64_t width, int64_t zero)
      : size(size), width(width), zero(int(zero)) {
    for (size_t code = 0; code < 256; ++code) {
      size_t known = std::min(code, values.size() - 1);
      words[code] = {uint32_t(values[known]), bits[known]};
      longest = std::max(longest, bits[known]);
    }
    most = longest + (zero < 0 ? 0 : 32);
    buckets = (size + width - 1) / width;
    each = std::max<int64_t>(kTogether / width, 1);
    parts = (buckets + each - 1) / each;
  }
  int64_t Values(int64_t bucket) const {
    return std::min(width, size - bucket * width);
  }
  template <typename Work>  // (part, message, its first bucket, behind its last)
  void ForParts(ffi::ThreadPool& pool, int64_t messages, Work work) const {
    ForAll(pool, messages * parts, [&](int64_t i) {
      int64_t from = i % parts * each;
      work(i, i / parts, from, std::min(from + each, buckets));
    });
  }
};

// Codewords one after another, the first bit first; what has no room is lost.
class Writer {
 public:
  Writer(uint8_t* to, int64_t room) : start_(to), to_(to), end_(to + room) {}

  INLINE void Put(Codeword word) {
    held_ = held_ << word.bits | word.value;
    bits_ += word.bits;
    if (bits_ < 32) return;
    bits_ -= 32;
    Store(uint32_t(held_ >> bits_));
  }
  void End() { Store(uint32_t(held_ << (32 - bits_))); }
  // Bits, if there was room for them.
  int64_t Written() const { return 8 * (to_ - start_) + bits_; }

 private:
  INLINE void Store(uint32_t word) {
    word = __builtin_bswap32(word);
    int64_t room = std::min<int64_t>(end_ - to_, 4);
    if (room == 4) std::memcpy(to_, &word, 4);
    else std::memcpy(to_, &word, size_t(room));
    to_ += room;
  }

  uint8_t *start_, *to_, *end_;
  uint64_t held_ = 0;
  int bits_ = 0;
};

FOR_ALL_CPUS void Write(const How& how, const uint8_t* codes, int64_t n,
                        Writer& to) {
  Writer own = to;  // in registers
  int64_t before = -1;
  if (how.zero < 0)
    for (int64_t i = 0; i < n; ++i) own.Put(how.words[codes[i]]);
  else
    for (int64_t i = 0; i < n; ++i) {
      if (codes[i] == how.zero) continue;
      own.Put(Omega(uint32_t(i - before)));
      own.Put(how.words[codes[i]]);
      before = i;
    }
  to = own;
}

struct Stream {
  const uint8_t* bytes;
  int64_t size;

  INLINE uint64_t Bytes(int64_t first) const {  // 8, zeros behind the end
    uint64_t window = 0;
    if (first + 8 <= size) std::memcpy(&window, bytes + first, 8);
    else if (first < size)
      std::memcpy(&window, bytes + first, size_t(size - first));
    return __builtin_bswap64(window);
  }
  // 57 bits or more from a position on, at the top.
  INLINE uint64_t At(int64_t position) const {
    return Bytes(position >> 3) << (position & 7);
  }
};

// prefix.Prefix.lookup
std::vector<uint32_t> Lookup(const How& how, size_t count) {
  std::vector<uint32_t> found(size_t(1) << how.longest, 1 << 8);
  for (size_t code = 0; code < count; ++code) {
    Codeword word = how.words[code];
    int free = how.longest - word.bits;
    if (word.bits)
      std::fill_n(found.begin() + (size_t(word.value) << free),
                  size_t(1) << free, uint32_t(word.bits) << 8 | uint32_t(code));
  }
  return found;
}

FOR_ALL_CPUS void ReadDense(const How& how, const uint32_t* lookup, Stream from,
                            int64_t at, uint8_t* codes, int64_t n) {
  const int down = 64 - how.longest, enough = 57 - how.longest;
  for (int64_t i = 0; i < n;) {
    uint64_t window = from.At(at);
    int taken = 0;
    do {
      uint32_t found = lookup[window >> down];
      codes[i++] = uint8_t(found);
      window <<= found >> 8;
      taken += int(found >> 8);
    } while (i < n && taken <= enough);
    at += taken;
  }
}

FOR_ALL_CPUS void ReadSparse(const How& how, const uint32_t* lookup,
                             Stream from, int64_t at, int64_t end,
                             uint8_t* codes, int64_t n) {
  std::fill_n(codes, n, uint8_t(how.zero));
  for (int64_t place = -1; at < end;) {
    uint64_t window = from.At(at);
    uint32_t gap = 1;
    int taken = 1;
    while (window >> 63 && gap < 31) {
      int bits = int(gap) + 1;
      gap = uint32_t(window >> (64 - bits));
      window <<= bits;
      taken += bits;
    }
    place += gap;
    if (place >= n || taken > 57 - how.longest) return;  // nobody wrote this
    uint32_t found = lookup[window << 1 >> (64 - how.longest)];
    codes[place] = uint8_t(found);
    at += taken + int(found >> 8);
  }
}

ffi::Error Encode(ffi::ThreadPool pool, U8 codes, ffi::Result<U8> stream,
                  ffi::Result<S32> lengths, Table values, Table bits,
                  int64_t width, int64_t zero) {
  const How how(values, bits, codes.dimensions().back(), width, zero);
  const int64_t messages = int64_t(codes.element_count()) / how.size;
  const int64_t room = stream->dimensions().back();
  struct Part {
    std::unique_ptr<uint8_t[]> bytes;
    int64_t bits;
  };
  std::vector<Part> made(size_t(messages * how.parts));
  how.ForParts(pool, messages, [&](int64_t i, int64_t m, int64_t k, int64_t to) {
    const int64_t most = (to - k) * width * how.most / 8 + 8;
    made[i].bytes.reset(new uint8_t[most]);  // few of its pages are touched
    Writer writer(made[i].bytes.get(), most);
    for (int64_t before = 0; k < to; ++k, before = writer.Written()) {
      const uint8_t* from = codes.typed_data() + m * how.size + k * width;
      Write(how, from, how.Values(k), writer);
      lengths->typed_data()[m * how.buckets + k] =
          int32_t(writer.Written() - before);
    }
    made[i].bits = writer.Written();
    writer.End();
  });
  std::fill_n(stream->typed_data(), stream->element_count(), 0);
  for (int64_t m = 0; m < messages; ++m) {
    Writer all(stream->typed_data() + m * room, room);
    for (int64_t i = m * how.parts; i < (m + 1) * how.parts; ++i) {
      Stream part{made[i].bytes.get(), (made[i].bits + 7) / 8};
      for (int64_t at = 0; at < made[i].bits; at += 32) {
        int n = int(std::min<int64_t>(made[i].bits - at, 32));
        all.Put({uint32_t(part.Bytes(at >> 3) >> (64 - n)), n});
      }
    }
    all.End();
  }
  return ffi::Error::Success();
}

ffi::Error Decode(ffi::ThreadPool pool, U8 stream, S32 lengths,
                  ffi::Result<U8> codes, Table values, Table bits,
                  int64_t width, int64_t zero) {
  const How how(values, bits, codes->dimensions().back(), width, zero);
  const std::vector<uint32_t> lookup = Lookup(how, values.size());
  const int64_t messages = int64_t(codes->element_count()) / how.size;
  const int64_t room = stream.dimensions().back();
  how.ForParts(pool, messages, [&](int64_t, int64_t m, int64_t k, int64_t to) {
    const Stream all{stream.typed_data() + m * room, room};
    const int32_t* length = lengths.typed_data() + m * how.buckets;
    int64_t at = 0;
    for (int64_t before = 0; before < k; ++before)
      at += std::max(length[before], 0);
    for (; k < to; at += std::max(length[k++], 0)) {
      uint8_t* here = codes->typed_data() + m * how.size + k * width;
      if (how.zero < 0)
        ReadDense(how, lookup.data(), all, at, here, how.Values(k));
      else
        ReadSparse(how, lookup.data(), all, at, at + length[k], here,
                   how.Values(k));
    }
  });
  return ffi::Error::Success();
}

}  // namespace

#define HOW                                                               \
  .Attr<Table>("values").Attr<Table>("bits").Attr<int64_t>("width") \
      .Attr<int64_t>("zero")

XLA_FFI_DEFINE_HANDLER_SYMBOL(moniqua_words_encode, Encode,
                              Bound().Arg<U8>().Ret<U8>().Ret<S32>() HOW);
XLA_FFI_DEFINE_HANDLER_SYMBOL(moniqua_words_decode, Decode,
                              Bound().Arg<U8>().Arg<S32>().Ret<U8>() HOW);
