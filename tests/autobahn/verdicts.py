"""Choose cases, and put into words what the suite says of them; no process, no file.

A result is the suite's own dictionary for a case. Its ``behavior`` judges the messages, its ``behaviorClose`` the
closing handshake, and both count.
"""

from __future__ import annotations

import fnmatch
import re

SELECTIONS = {
    "all": "*",
    # Everything but sections 12 and 13, which take a quarter of an hour; of these each kind of data and of offer, with
    # short and long messages, whole and in fragments.
    "quick": "1.* 2.* 3.* 4.* 5.* 6.* 7.* 9.* 10.* 12.*.1 12.*.5 12.1.11 12.4.10 13.*.1 13.*.5 13.7.11",
    # Without the waits of section 6 and the octets of section 9: for a further style, or the other side.
    "small": "1.* 2.* 3.* 4.* 5.* 7.* 10.* 12.*.1 13.*.1",
}
GOOD = ("OK", "INFORMATIONAL")
MISSING = "MISSING"
#: Cases that an engine cannot judge in a role; tests/autobahn/README.md says why.
SLIPS = {("kosoku", "client"): "13.2.* 13.5.* 13.6.*"}

_OPCODES = {0: "CONTINUATION", 1: "TEXT", 2: "BINARY", 8: "CLOSE", 9: "PING", 10: "PONG"}
_MAX_SHOWN_FRAMES = 12
_MAX_SHOWN_CHARACTERS = 200


def select(cases, wanted, unwanted=""):
    """Return the cases that match a pattern of ``wanted`` and none of ``unwanted``, in the suite's order.

    Raises:
        ValueError: A wanted pattern matches nothing, or nothing is left.
    """
    patterns = split_patterns(wanted)
    for pattern in patterns:
        if not fnmatch.filter(cases, pattern):
            raise ValueError(f"there is no case {pattern!r}")
    refused = split_patterns(unwanted)
    chosen = [case for case in cases if matches(case, patterns) and not matches(case, refused)]
    if not chosen:
        raise ValueError(f"no case is left of {wanted!r} without {unwanted!r}")
    return chosen


def split_patterns(text):
    words = re.split(r"[\s,]+", text)
    return [pattern for word in words for pattern in SELECTIONS.get(word, word).split()]


def matches(case, patterns):
    return any(fnmatch.fnmatchcase(case, pattern) for pattern in patterns)


def is_good(result):
    return result["behavior"] in GOOD and result["behaviorClose"] in GOOD


def judge(result):
    """Return the one word that stands for a case: the first of its two verdicts that is not OK."""
    both = (result["behavior"], result["behaviorClose"])
    bad = [verdict for verdict in both if verdict not in GOOD]
    return (bad or [verdict for verdict in both if verdict != "OK"] or ["OK"])[0]


def make_missing(case):
    return {"id": case, "behavior": MISSING, "behaviorClose": MISSING}


def describe(result):
    """Return the lines that tell why a case is not good, with its frames where the suite noted them."""
    code = result.get("remoteCloseCode")
    heading = f"{result['id']}: messages {result['behavior']}, closing {result['behaviorClose']}"
    lines = [heading if code is None else f"{heading}, our close code {code}"]
    lines += [f"    {result[name]}" for name in ("result", "resultClose", "wasNotCleanReason") if result.get(name)]
    if result["behavior"] not in GOOD:
        lines += [f"    {name} {result[name]}" for name in ("expected", "received") if name in result]
    frames = [describe_frame(entry) for entry in result.get("wirelog", []) if entry[0] in ("TF", "RF")]
    lines += frames[:_MAX_SHOWN_FRAMES]
    if len(frames) > _MAX_SHOWN_FRAMES:
        lines.append(f"    ... and {len(frames) - _MAX_SHOWN_FRAMES} more frames")
    return [line[:_MAX_SHOWN_CHARACTERS] for line in lines]


def describe_frame(entry):
    """Return a line for a frame of the suite's log: received from us, or sent to us."""
    kind, (size, payload), opcode, fin, rsv = entry[:5]
    sender = "ours  " if kind == "RF" else "suite "
    name = _OPCODES.get(opcode, f"opcode {opcode}")
    return f"    {sender} {name} fin={int(fin)} rsv={rsv} {size} octets {payload!r}"


def tabulate(results):
    """Return the lines of a table: how many cases of each section have which verdict, and how long they took."""
    sections = sorted({int(result["id"].split(".")[0]) for result in results})
    others = sorted({judge(result) for result in results} - set(GOOD))
    rows = [["section", "cases", *GOOD, *others, "seconds"]]
    for section in [*sections, None]:
        own = [result for result in results if section in (None, int(result["id"].split(".")[0]))]
        verdicts = [judge(result) for result in own]
        seconds = sum(read_duration(result) for result in own)
        counts = [str(verdicts.count(name)) for name in (*GOOD, *others)]
        rows.append(["all" if section is None else str(section), str(len(own)), *counts, f"{seconds:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def read_duration(result):
    # A case that was never opened is counted from 1970 on by the suite.
    milliseconds = result.get("duration", 0)
    return milliseconds / 1000 if milliseconds < 1e9 else 0.0
