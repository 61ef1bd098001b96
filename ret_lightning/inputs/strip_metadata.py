"""Removal of metadata from encoded images, so that images with broken metadata can be decoded.

Each function copies the parts with pixels, orientation and, if it is intact, transparency, and drops the others. Pixels are not
repaired: truncated images remain truncated.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Container, Iterator

# TIFF tags that pixels depend on, and the orientation (274).
_TIFF_PIXELS = frozenset(
    [
        *range(254, 260), 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, *range(322, 326), 332, 338, 339, 347,
        *range(512, 522), *range(529, 533),
    ]
)  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"
_AVIF_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)  # version, flags, id, protection; type


def strip_metadata(data: bytes) -> Iterator[bytes]:
    """Iterate over copies of an encoded image without metadata, in the order in which to try them.

    Args:
        data: content of an image file. There are no copies of files in unknown formats, and of files without metadata.
    """
    last = data
    for signature, strip in _FORMATS:
        if signature.match(data):
            try:
                for copy in strip(data):
                    if copy != last:
                        yield copy
                    last = copy
            except (struct.error, IndexError):  # the file is truncated within a header
                return


def _strip_png(data: bytes) -> Iterator[bytes]:
    chunks = [*_png_chunks(data)]
    for kept in ((b"tRNS", b"eXIf"), (b"eXIf",), ()):
        yield _PNG + b"".join(chunk for name, chunk in chunks if name[:1].isupper() or name in kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over the names and bytes of chunks, without optional chunks that are truncated or have a wrong checksum."""
    at = len(_PNG)
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        name, chunk = data[at + 4 : at + 8], data[at : at + 12 + size]
        is_intact = len(chunk) == 12 + size and struct.unpack(">I", chunk[-4:])[0] == zlib.crc32(chunk[4:-4])
        if is_intact or name[:1].isupper():
            yield name, chunk
        at += 12 + size


def _strip_jpeg(data: bytes) -> Iterator[bytes]:
    kept, at = [data[:2]], 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == 0xDA:
            yield b"".join((*kept, data[at:]))
            return
        (size,) = struct.unpack_from(">H", data, at + 2)
        content = data[at + 4 : at + 2 + size]
        # JFIF and Adobe define the colour space.
        known = (0xE0, b"JFIF\0", 14), (0xEE, b"Adobe", 12), (0xE1, b"Exif\0\0", 6)
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or any(marker == m and content.startswith(c) and len(content) >= n for m, c, n in known):
            kept.append(data[at : at + 2 + size])
        at += 2 + size


def _strip_webp(data: bytes) -> Iterator[bytes]:
    for kept in ((b"EXIF",), ()):
        chunks, at = [], 12
        while at + 8 <= len(data):
            name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
            chunk = data[at : at + 8 + size + size % 2]
            if name in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", *kept) and len(chunk) >= 8 + size:
                chunks.append(chunk.ljust(8 + size + size % 2, b"\0"))
            at += 8 + size + size % 2
        content = b"WEBP" + b"".join(chunks)
        yield b"RIFF" + struct.pack("<I", len(content)) + content


def _strip_tiff(data: bytes) -> Iterator[bytes]:
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    entries = [data[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
    kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _TIFF_PIXELS]
    end = start + 2 + 12 * count  # of the entries; the offset of the next image follows
    table = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + data[end : end + 4]
    yield data[:start] + table + data[start + len(table) :]


def _strip_gif(data: bytes) -> Iterator[bytes]:
    def table_size(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    def end_of_blocks(at: int) -> int:
        while data[at]:
            at += 1 + data[at]
        return at + 1

    at = 13 + table_size(data[10])
    kept = [data[:at]]
    while data[at] == 0x21:
        end = end_of_blocks(at + 2)
        if data[at + 1] == 0xF9 and data[at + 2] == 4:  # contains the transparent colour
            kept.append(data[at:end])
        at = end
    yield b"".join((*kept, data[at:]))


def _strip_avif(data: bytes) -> Iterator[bytes]:
    yield _AVIF_EXIF_ITEM.sub(rb"\1skip", data)


def _strip_jpeg2000(data: bytes) -> Iterator[bytes]:
    yield b"".join(_iter_boxes(data, (b"jP  ", b"ftyp", b"jp2h", b"jp2c")))


def _iter_boxes(data: bytes, kept: Container[bytes]) -> Iterator[bytes]:
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        box = data[at : at + size] if size else data[at:]
        if name == b"jp2h":
            content = b"".join(_iter_boxes(box[8:], (b"ihdr", b"bpcc", b"colr", b"pclr", b"cmap", b"cdef")))
            box = struct.pack(">I4s", 8 + len(content), name) + content
        if name in kept:
            yield box
        at += max(size, 8) if size else len(data)


_FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], Iterator[bytes]]], ...] = (
    (re.compile(re.escape(_PNG)), _strip_png),
    (re.compile(rb"\xff\xd8\xff"), _strip_jpeg),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _strip_webp),
    (re.compile(rb"II\*\0|MM\0\*"), _strip_tiff),
    (re.compile(rb"GIF8[79]a"), _strip_gif),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), _strip_avif),
    (re.compile(rb"\0\0\0\x0cjP  "), _strip_jpeg2000),
)
