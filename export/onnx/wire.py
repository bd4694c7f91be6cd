"""How much memory a protocol buffer would take, reckoned from its bytes before anything is made of them.

A file of a few megabytes may hold millions of empty messages, each a hundred times larger in memory than on the disk.
Real networks are far from that: they hold few messages, and nearly all of their bytes are weights.
"""

from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor  # type: ignore[import-untyped]

from compress.errors import ArtifactError

MESSAGE, TEXT, NUMBER = 640, 64, 64  # bytes in memory, in both of the readers that see a file
ALLOWED = 256 * 2**20  # bytes beside those of the file itself; more in proportion for files above 100 MB
_PACKED = {FieldDescriptor.TYPE_INT32: 8, FieldDescriptor.TYPE_INT64: 16, FieldDescriptor.TYPE_UINT64: 16}

# Of each field by its number: bytes in memory for each of its own, the schema of the message in it, whether it is text.
Fields = dict[int, tuple[int, Any, bool]]


def weigh(data: bytes, schema: Descriptor) -> int:
    """Return about how many bytes a message of this schema takes in memory beside a copy of its own.

    Raises ArtifactError as soon as that is too much; it never takes longer than what is allowed can take. Raises
    UnicodeDecodeError for a text that is none: Python would be given bytes for it. Bytes that are no message are left
    to the parser, which refuses them.
    """
    allowed = ALLOWED * max(1, len(data) // 10**8)
    cost, todo = MESSAGE, [(0, len(data), _fields(schema))]
    while todo:
        at, end, fields = todo.pop()
        while at < end:
            tag, at = _varint(data, at, end)
            kind = tag & 7 if at >= 0 else -1
            if kind == 2:
                size, at = _varint(data, at, end)
                times, inner, text = fields.get(tag >> 3, (0, None, False))
                if at + size > end or at < 0:
                    return cost
                if inner is not None:
                    cost += MESSAGE
                    todo.append((at, at + size, _fields(inner)))
                else:
                    cost += TEXT + times * size
                    if text:
                        data[at : at + size].decode()
                at += size
            elif kind == 0:
                _, at = _varint(data, at, end)
                cost += NUMBER
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
                cost += NUMBER
            else:
                return cost
            if at < 0:
                return cost
            if cost > allowed:
                raise ArtifactError(
                    f"{len(data):,} bytes would take more than {allowed:,} bytes of memory beside them, for they hold "
                    "more pieces than any network has; nothing of it is read."
                )
    return cost


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number and the place behind it; a place below 0 where there is none."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return 0, -(10**18)


@cache
def _fields(schema: Descriptor) -> Fields:
    texts = FieldDescriptor.TYPE_STRING
    return {f.number: (_PACKED.get(f.type, 0), f.message_type, f.type == texts) for f in schema.fields}
