// What the functions for CPUs share.
//
// Each gives bit for bit what a jnp form gives, which says what is computed and
// why; fused multiply-adds are off, as `numerics.rounded` has it. What is worked on
// stays in a cache, and loops are left to the compiler, which makes them for
// several kinds of CPU. Threads are those of XLA.

#ifndef MONIQUA_NATIVE_H_
#define MONIQUA_NATIVE_H_

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__) && defined(__linux__)
#define FOR_ALL_CPUS \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_ALL_CPUS
#endif
// Whatever is in a loop; else it would be compiled for the least of all CPUs.
#define ALWAYS __attribute__((always_inline))
#define INLINE ALWAYS inline

namespace {

namespace ffi = xla::ffi;
using F32 = ffi::Buffer<ffi::F32>;
using U32 = ffi::Buffer<ffi::U32>;
using U8 = ffi::Buffer<ffi::U8>;

INLINE uint32_t Word(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  return word;
}

constexpr uint32_t kGolden = 0x9E3779B9;

// dither.bits: word i of a seed.
INLINE uint32_t Random(uint32_t seed, uint32_t i) {
  uint32_t word = seed + i * kGolden;
  word = (word ^ (word >> 16)) * 0x7FEB352Du;
  word = (word ^ (word >> 15)) * 0x846CA68Bu;
  return word ^ (word >> 16);
}

// dither.unit
INLINE float Unit(uint32_t word) {
  return float(int32_t(word >> 8)) * 0x1p-24f;
}

// Does all the work on this thread, and on those of XLA that come in time. It
// waits for none that has not begun: all of them may be waiting here.
template <typename Work>
void ForAll(ffi::ThreadPool& pool, int64_t count, Work work) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  auto help = [shared, count, &work] {  // `work` is gone for who is late
    for (int64_t i; (i = shared->next++) < count; ++shared->done) work(i);
  };
  int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t k = 0; k < helpers; ++k) pool.Schedule(decltype(help)(help));
  help();
  while (shared->done < count) std::this_thread::yield();
}

auto Bound() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>(); }

}  // namespace

#endif  // MONIQUA_NATIVE_H_
