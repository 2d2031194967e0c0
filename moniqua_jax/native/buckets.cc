// quantizers/buckets.py with the grids of QSGD and of NUQSGD: a bucket is read
// for its norm and again, from a cache, for its codes.

#include "native.h"

namespace {

constexpr int64_t kLanes = 128, kGroup = 4 * kLanes;
constexpr int64_t kTogether = 1 << 16;  // values that a thread takes at a time

// buckets.ratio
struct Ratio {
  float shrink, inverse;

  INLINE explicit Ratio(float size) {
    shrink = size > 1 ? 0x1p-64f : 1;
    inverse = 1 / ((size > 0 ? size : 1) * shrink);
  }
  INLINE float Of(float x) const { return x * shrink * inverse; }
};

INLINE float Largest(const float* x, int64_t n) {
  int32_t most = 0;
  for (int64_t i = 0; i < n; ++i)
    most = std::max(most, int32_t(Word(std::fabs(x[i]))));
  if (most >= 0x7F800000) return NAN;  // not all are finite
  float size;
  std::memcpy(&size, &most, 4);
  return most < 0x00800000 ? 0 : size;
}

// numerics.sum_rows of squares, in the order in which XLA for CPUs has it: lanes in
// fours, these in fours, one after the other, and lanes in halves.
INLINE float Square(const float* x, int64_t n, const Ratio& by) {
  float total[kLanes] = {}, sixteen[kLanes] = {}, rest[kGroup] = {};
  for (int64_t first = 0; first < n; first += kGroup) {
    const float* here = x + first;
    if (n - first < kGroup) {
      std::copy_n(here, n - first, rest);
      here = rest;
    }
    for (int64_t i = 0; i < kLanes; ++i) {
      float a = by.Of(here[i]), b = by.Of(here[i + kLanes]);
      float c = by.Of(here[i + 2 * kLanes]), d = by.Of(here[i + 3 * kLanes]);
      sixteen[i] += a * a + b * b + c * c + d * d;
    }
    if (first / kGroup % 4 < 3 && first + kGroup < n) continue;
    for (int64_t i = 0; i < kLanes; ++i) total[i] += sixteen[i], sixteen[i] = 0;
  }
  for (int64_t width = kLanes / 2; width; width /= 2)
    for (int64_t i = 0; i < width; ++i) total[i] += total[i + width];
  return total[0];
}

INLINE float Norm(const float* x, int64_t n, bool l2) {
  float most = Largest(x, n);
  if (!l2) return most;
  float norm = most * std::sqrt(Square(x, n, Ratio(most)));
  return std::fabs(norm) < INFINITY ? norm : NAN;
}

// qsgd.uniform_grid
struct Uniform {
  float s;

  INLINE explicit Uniform(int64_t s) : s(s) {}
  INLINE uint8_t Of(float r, uint32_t word) const {
    float level = std::floor(s * r + Unit(word));
    level = level > s ? s : level;
    return level >= -s ? int32_t(level + s) : 0;  // a NaN is 0
  }
};

// nuqsgd.halving_grid
struct Halving {
  int32_t zero;
  float least, most;

  INLINE explicit Halving(int64_t s)
      : zero(s + 1), least(std::ldexp(1.f, -s)), most(std::ldexp(1.f, s)) {}
  INLINE uint8_t Of(float r, uint32_t word) const {
    float size = std::fabs(r);
    bool small = size < least;
    uint32_t bits = Word(small ? 1 + size * most : size) + (word >> 9);
    int32_t index = int32_t(bits >> 23) - 127 + (small ? 0 : zero);
    return zero + (r < 0 ? -index : index);
  }
};

// Buckets of x f32[d] from one on.
struct Buckets {
  const float* x;
  int64_t d, size, from, to, s;
  bool l2;
  uint32_t seed;
};

template <typename Grid>
INLINE void Quantize(const Buckets& all, uint8_t* codes, float* norms) {
  const Grid grid(all.s);
  for (int64_t k = all.from; k < all.to; ++k) {
    int64_t first = k * all.size, n = std::min(all.size, all.d - first);
    const float* x = all.x + first;
    norms[k] = Norm(x, n, all.l2);
    const Ratio by(norms[k]);
    const uint32_t seed = all.seed + uint32_t(first) * kGolden;
    for (int64_t i = 0; i < n; ++i) {
      float r = by.Of(x[i]);
      r = r < -1 ? -1 : r;
      r = r > 1 ? 1 : r;
      codes[first + i] = grid.Of(r, Random(seed, i));
    }
  }
}

FOR_ALL_CPUS void OfUniform(const Buckets& all, uint8_t* codes, float* norms) {
  Quantize<Uniform>(all, codes, norms);
}

FOR_ALL_CPUS void OfHalving(const Buckets& all, uint8_t* codes, float* norms) {
  Quantize<Halving>(all, codes, norms);
}

template <auto kQuantize>
ffi::Error Encode(ffi::ThreadPool pool, F32 x, U32 seeds, ffi::Result<U8> codes,
                  ffi::Result<F32> norms, int64_t size, int64_t s, bool l2) {
  int64_t count = seeds.element_count(), d = x.element_count() / count;
  int64_t buckets = (d + size - 1) / size;
  int64_t each = std::max<int64_t>(kTogether / size, 1);
  int64_t parts = (buckets + each - 1) / each;
  ForAll(pool, count * parts, [&](int64_t i) {
    int64_t k = i / parts, from = i % parts * each;
    Buckets all{x.typed_data() + k * d, d, size, from,
                std::min(from + each, buckets), s, l2, seeds.typed_data()[k]};
    kQuantize(all, codes->typed_data() + k * d,
              norms->typed_data() + k * buckets);
  });
  return ffi::Error::Success();
}

auto Bind() {
  return Bound().Arg<F32>().Arg<U32>().Ret<U8>().Ret<F32>()
      .Attr<int64_t>("bucket_size").Attr<int64_t>("s").Attr<bool>("l2");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(moniqua_uniform, Encode<OfUniform>, Bind());
XLA_FFI_DEFINE_HANDLER_SYMBOL(moniqua_halving, Encode<OfHalving>, Bind());
