"""The uninstrumented engine: it changes inputs of a corpus at random, and runs a target on them, quickly."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path
from typing import NamedTuple

SEEDS = Path(__file__).with_name("corpus")
#: What the guided engine has found, and findings; not part of the repository.
FOUND = Path(__file__).parents[2] / "build" / "fuzz"
MAX_SIZE = 512
#: Octets at which something changes in frames, in UTF-8 or in a header.
TELLING = bytes(
    [*range(17), 33, 34, 37, 44, 45, 58, 59, 61, 92, 125, 126, 127, 128, 129, 130, 136, 137, 138, 0x91, 0x9F]
)
TELLING += bytes([0xA0, 0xBF, 0xC0, 0xC2, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFD, 0xFE, 0xFF, 0x7F, 0x80])
PIECES = (b"\x81\x85\0\0\0\0", b"\x80\x80\0\0\0\0", b"\x89\x80\0\0\0\0", b"\x01\x00", b"\x80\x00", b"\x88\x02\x03\xe8")
PIECES += (b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\x7e\x00\x7e", b"\xfe\x00\x7e", b"\x7f\0\0\0\0\0\1\0\0", b"\xff" * 8)
PIECES += (b'"', b", ", b"; ", b"=", b"\r\n", b"\r\n ", b": ", b"%41", b"::ffff:", b"]:1", b'\\"')


class Finding(Exception):
    """An input on which a target raised; the cause is what it raised."""

    def __init__(self, path, data):
        super().__init__(f"{path} ({data[:64].hex(' ')}{' ...' if len(data) > 64 else ''})")
        self.path = path


class Figures(NamedTuple):
    """What a run took; the seconds are the processor's, for others may use it, too."""

    runs: int
    seconds: float

    def __str__(self):
        return f"{self.runs} runs, {self.runs / max(self.seconds, 1e-9):.0f} a second of the processor"


def load(name, *folders):
    """Return the inputs that are in folders for a target, in an order that does not depend on the machine."""
    paths = (path for folder in folders if folder.joinpath(name).is_dir() for path in sorted((folder / name).iterdir()))
    return [path.read_bytes() for path in paths]


def run(name, check, corpus, *, runs, seed, seconds=None):
    """Run a target on so many changed inputs of a corpus, or for so long.

    Raises:
        Finding: The target raised; the input is kept in a file.
    """
    numbers = random.Random(seed)
    started, started_work = time.monotonic(), time.process_time()
    count = 0
    while count < runs and (seconds is None or time.monotonic() - started < seconds):
        data = mutate(numbers, corpus)
        try:
            check(data)
        except Exception as error:
            raise Finding(keep(name, data), data) from error
        count += 1
    return Figures(count, time.process_time() - started_work)


def keep(name, data):
    folder = FOUND / "findings"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{hashlib.sha1(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def mutate(numbers, corpus):
    """Return an input of the corpus with one to four changes."""
    draw = numbers.random
    data = bytearray(corpus[int(draw() * len(corpus))])
    for _ in range(1 + int(draw() * 4)):
        at = int(draw() * (len(data) + 1))
        CHANGES[int(draw() * len(CHANGES))](data, at, draw, corpus)
    return bytes(data[:MAX_SIZE])


def flip(data, at, draw, corpus):
    if at < len(data):
        data[at] ^= 1 << int(draw() * 8)


def replace(data, at, draw, corpus):
    data[at : at + 1] = bytes([int(draw() * 256)])


def replace_telling(data, at, draw, corpus):
    place = int(draw() * len(TELLING))
    data[at : at + 1] = TELLING[place : place + 1]


def change_head(data, at, draw, corpus):
    # The octets that choose come first in every target.
    at = int(draw() * 8)
    data[at : at + 1] = bytes([int(draw() * 256)])


def insert(data, at, draw, corpus):
    data[at:at] = PIECES[int(draw() * len(PIECES))]


def delete(data, at, draw, corpus):
    del data[at : at + 1 + int(draw() * 8)]


def repeat(data, at, draw, corpus):
    data[at:at] = data[at : at + 1 + int(draw() * 24)] * (1 + int(draw() * 3))


def move(data, at, draw, corpus):
    size = 1 + int(draw() * 16)
    piece = data[at : at + size]
    del data[at : at + size]
    at = int(draw() * (len(data) + 1))
    data[at:at] = piece


def splice(data, at, draw, corpus):
    other = corpus[int(draw() * len(corpus))]
    start = int(draw() * (len(other) + 1))
    data[at:] = other[start : start + 128]


CHANGES = (flip, replace, replace_telling, change_head, insert, delete, repeat, move, splice)
