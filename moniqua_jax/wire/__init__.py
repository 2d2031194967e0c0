"""The wire: codes of b bits packed into bytes, and numbers cast to bytes.

What is not in a payload, one `u8[m]` vector per message, was not sent.
"""

from moniqua_jax.wire.fields import (
  cast,
  floats,
  from_bytes,
  to_bytes,
  uncast,
  words,
)
from moniqua_jax.wire.payloads import (
  join,
  nbytes,
  pack,
  require,
  split,
  unpack,
)
from moniqua_jax.wire.stripes import (
  TILE,
  cuts,
  merged,
  pack_parts,
  packed_size,
  parts,
  planes,
  unpack_in_place,
  unpack_part,
)
from moniqua_jax.wire.wide import (
  bits_size,
  from_bits,
  from_planes,
  index_bytes,
  to_bits,
  to_planes,
)

__all__ = [
  'TILE',
  'bits_size',
  'cast',
  'cuts',
  'floats',
  'from_bits',
  'from_bytes',
  'from_planes',
  'index_bytes',
  'join',
  'merged',
  'nbytes',
  'pack',
  'pack_parts',
  'packed_size',
  'parts',
  'planes',
  'require',
  'split',
  'to_bits',
  'to_bytes',
  'to_planes',
  'uncast',
  'unpack',
  'unpack_in_place',
  'unpack_part',
  'words',
]
