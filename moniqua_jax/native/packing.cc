// wire.pack and wire.unpack, and vectors that come in pieces.

#include "planes.h"

namespace {

template <bool kPack>
INLINE void Chunk(const Planes& at, int64_t from, int64_t to, uint8_t* codes,
                  uint8_t* packed) {
  for (int64_t place = from; place < std::min(to, at.length); place += kTile)
    for (int64_t s = 0; s < at.count; ++s)
      Tile<kPack>(at, s, place, codes + s * at.length + place, packed);
  if (from == at.length) Rest<kPack>(at, codes + at.whole, packed);
}

FOR_ALL_CPUS void PackChunk(const Planes& at, int64_t from, int64_t to,
                            uint8_t* codes, uint8_t* packed) {
  Chunk<true>(at, from, to, codes, packed);
}

FOR_ALL_CPUS void UnpackChunk(const Planes& at, int64_t from, int64_t to,
                              uint8_t* codes, uint8_t* packed) {
  Chunk<false>(at, from, to, codes, packed);
}

ffi::Error Pack(ffi::ThreadPool pool, U8 codes, U8 behind,
                ffi::Result<U8> packed, int64_t bits) {
  Chunks all(codes, bits);
  all.Each(pool, [&](int64_t, int64_t row, int64_t from, int64_t to) {
    PackChunk(all.at, from, to, all.Of(codes, row), all.Of(*packed, row));
  });
  for (int64_t row = 0; row < all.count; ++row)
    std::copy_n(all.Of(behind, row), behind.element_count() / all.count,
                all.Of(*packed, row) + all.at.bytes);
  return ffi::Error::Success();
}

ffi::Error Unpack(ffi::ThreadPool pool, U8 packed, ffi::Result<U8> codes,
                  int64_t bits) {
  Chunks all(*codes, bits);
  all.Each(pool, [&](int64_t, int64_t row, int64_t from, int64_t to) {
    UnpackChunk(all.at, from, to, all.Of(*codes, row), all.Of(packed, row));
  });
  return ffi::Error::Success();
}

ffi::Error Join(ffi::RemainingArgs pieces, ffi::Result<ffi::AnyBuffer> joined) {
  int64_t count = joined->element_count() / joined->dimensions().back();
  char* to = static_cast<char*>(joined->untyped_data());
  for (int64_t row = 0; row < count; ++row)
    for (size_t i = 0; i < pieces.size(); ++i) {
      auto piece = *pieces.get<ffi::AnyBuffer>(i);
      int64_t n = piece.size_bytes() / count;
      std::memcpy(to, static_cast<char*>(piece.untyped_data()) + row * n, n);
      to += n;
    }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moniqua_pack, Pack,
    Bound().Arg<U8>().Arg<U8>().Ret<U8>().Attr<int64_t>("bits"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moniqua_unpack, Unpack,
    Bound().Arg<U8>().Ret<U8>().Attr<int64_t>("bits"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moniqua_join, Join,
    ffi::Ffi::Bind().RemainingArgs().Ret<ffi::AnyBuffer>());
