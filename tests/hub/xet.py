"""The formats of Xet, in which today's client sends large files: chunks in xorbs, and shards that make files of them.

After the published specification. Only what a server has to read is here; the hashes of chunks and xorbs are taken as
given, for a file's SHA-256 says whether it came together right.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

_ENTRY = 48
_HEADER = struct.Struct("<32sII8x")  # of a file: its hash, its flags, how many terms
_TERM = struct.Struct("<32sIIII")  # a xorb's hash, flags, unpacked bytes, first chunk, chunk after the last
_WITH_VERIFICATION, _WITH_SHA256 = 1 << 31, 1 << 30
_BOOKEND = b"\xff" * 32
_PLAIN, _LZ4, _GROUPED_LZ4 = 0, 1, 2


@dataclass(frozen=True)
class Term:
    """A range of chunks of a xorb, and how long they are unpacked."""

    xorb: str
    start: int
    stop: int
    length: int


@dataclass(frozen=True)
class FileInfo:
    """A file's own hash and the ranges that make it, with the SHA-256 that it promises."""

    hash: str
    sha256: str
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Chunk:
    """A chunk's content, and where it lies in its xorb, header and all."""

    content: bytes
    start: int
    stop: int


def name_of(digest: bytes) -> str:
    """A hash in letters: four numbers of 64 bits, the lowest byte of each first."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def read_shard(shard: bytes) -> Iterator[FileInfo]:
    """The files that a shard describes."""
    at = _ENTRY
    while shard[at : at + 32] != _BOOKEND:
        digest, flags, count = _HEADER.unpack_from(shard, at)
        terms = [_TERM.unpack_from(shard, at + _ENTRY * (1 + i)) for i in range(count)]
        at += _ENTRY * (1 + count + (count if flags & _WITH_VERIFICATION else 0))
        if not flags & _WITH_SHA256:
            raise ValueError("a file of a repository needs its SHA-256")
        sha256 = name_of(shard[at : at + 32])
        at += _ENTRY
        found = tuple(Term(name_of(xorb), start, stop, length) for xorb, _, length, start, stop in terms)
        yield FileInfo(name_of(digest), sha256, found)


def read_xorb(xorb: bytes) -> list[Chunk]:
    """The chunks of a xorb; after them may come a footer, which begins with another byte than they do."""
    chunks: list[Chunk] = []
    at = 0
    while at < len(xorb) and xorb[at] == 0:
        packed, scheme, size = _number(xorb, at + 1), xorb[at + 4], _number(xorb, at + 5)
        stop = at + 8 + packed
        content = _unpack(xorb[at + 8 : stop], scheme, size)
        if len(content) != size:
            raise ValueError(f"a chunk of {size} bytes has {len(content)}")
        chunks.append(Chunk(content, at, stop))
        at = stop
    return chunks


def terms_within(file: FileInfo, xorbs: Mapping[str, list[Chunk]], start: int, stop: int) -> tuple[int, list[Term]]:
    """The ranges of chunks that hold these bytes of a file, and how far into the first of them the bytes begin."""
    terms: list[Term] = []
    offset = at = 0
    for term in file.terms:
        for i in range(term.start, term.stop):
            length = len(xorbs[term.xorb][i].content)
            if at < stop and at + length > start:
                if not terms:
                    offset = start - at
                last = terms[-1] if terms else None
                if last and last.xorb == term.xorb and last.stop == i:
                    terms[-1] = replace(last, stop=i + 1, length=last.length + length)
                else:
                    terms.append(Term(term.xorb, i, i + 1, length))
            at += length
    return offset, terms


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _unpack(data: bytes, scheme: int, size: int) -> bytes:
    if scheme == _PLAIN:
        return data
    content = _unpack_frame(data)
    if scheme == _LZ4:
        return content
    if scheme != _GROUPED_LZ4:
        raise ValueError(f"{scheme} is no compression of Xet")
    # All first bytes of four came first, then all second ones, ...
    ungrouped, at = bytearray(size), 0
    for place in range(4):
        count = len(range(place, size, 4))
        ungrouped[place::4] = content[at : at + count]
        at += count
    return bytes(ungrouped)


def _unpack_frame(data: bytes) -> bytes:
    """LZ4's frame format."""
    magic, flags = struct.unpack_from("<IB", data)
    if magic != 0x184D2204:
        raise ValueError("this is no frame of LZ4")
    has_block_checksum, has_size, has_dictionary = flags & 0x10, flags & 0x08, flags & 0x01
    at = 7 + (8 if has_size else 0) + (4 if has_dictionary else 0)
    output = bytearray()
    while size := struct.unpack_from("<I", data, at)[0]:
        block = data[at + 4 : at + 4 + (size & 0x7FFFFFFF)]
        if size >> 31:
            output += block
        else:
            _unpack_block(block, output)
        at += 4 + len(block) + (4 if has_block_checksum else 0)
    return bytes(output)


def _unpack_block(block: bytes, output: bytearray) -> None:
    """LZ4's block format: literal bytes and repetitions of earlier ones, by turns."""
    at = 0
    while at < len(block):
        token = block[at]
        length, at = _length(block, at + 1, token >> 4)
        output += block[at : at + length]
        at += length
        if at == len(block):
            return
        offset = int.from_bytes(block[at : at + 2], "little")
        length, at = _length(block, at + 2, token & 15)
        start, length = len(output) - offset, length + 4
        while length > 0:  # what is repeated may run into what it makes
            piece = output[start : start + length]
            output += piece
            length -= len(piece)


def _length(block: bytes, at: int, length: int) -> tuple[int, int]:
    """A length that began with four bits, and where what follows it lies."""
    if length == 15:
        while block[at] == 255:
            length, at = length + 255, at + 1
        length, at = length + block[at], at + 1
    return length, at
