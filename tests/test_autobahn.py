"""How a run of the Autobahn cases chooses and counts them; the cases themselves are for ``make autobahn``."""

from __future__ import annotations

import pytest

from tests.autobahn.verdicts import SELECTIONS, describe, is_good, judge, make_missing, select, tabulate

CASES = ["1.1.1", "1.1.2", "2.1", "7.7.1", "9.1.6", "10.1.1", "12.1.1", "12.1.11", "12.1.12", "12.3.11", "13.2.1"]


def make_result(behavior, closing="OK", case="1.1.1", **more):
    return {"id": case, "behavior": behavior, "behaviorClose": closing, "duration": 250, **more}


@pytest.mark.parametrize(
    ("wanted", "unwanted", "chosen"),
    [
        pytest.param("1.*", "", ["1.1.1", "1.1.2"], id="section-1-is-not-10"),
        pytest.param("9.*, 2.*", "", ["2.1", "9.1.6"], id="comma-and-order"),
        pytest.param("12.*.11", "12.3.*", ["12.1.11"], id="exclusion"),
        pytest.param("all", "12.* 13.*", CASES[:6], id="all"),
        pytest.param("2.1", "99.*", ["2.1"], id="exclusion-of-nothing"),
    ],
)
def test_selection(wanted, unwanted, chosen):
    assert select(CASES, wanted, unwanted) == chosen


@pytest.mark.parametrize("name", ["quick", "small"])
def test_selection_by_name(name):
    chosen = [pattern.replace("*", "2") for pattern in SELECTIONS[name].split()]
    assert select([*chosen, "12.1.12", "13.7.12"], name) == chosen


@pytest.mark.parametrize(("wanted", "unwanted"), [("1.* 11.*", ""), ("1.*", "1.*"), ("", "")])
def test_selection_of_nothing(wanted, unwanted):
    with pytest.raises(ValueError, match="no case"):
        select(CASES, wanted, unwanted)


@pytest.mark.parametrize(
    ("behavior", "closing", "word", "good"),
    [
        ("OK", "OK", "OK", True),
        ("INFORMATIONAL", "OK", "INFORMATIONAL", True),
        ("OK", "INFORMATIONAL", "INFORMATIONAL", True),
        ("OK", "WRONG CODE", "WRONG CODE", False),
        ("INFORMATIONAL", "FAILED", "FAILED", False),
        ("OK", "FAILED BY CLIENT", "FAILED BY CLIENT", False),
        ("OK", "UNCLEAN", "UNCLEAN", False),
        ("NON-STRICT", "OK", "NON-STRICT", False),
        ("UNIMPLEMENTED", "OK", "UNIMPLEMENTED", False),
        ("ERROR", "FAILED", "ERROR", False),
    ],
)
def test_both_verdicts_count(behavior, closing, word, good):
    result = make_result(behavior, closing)
    assert (judge(result), is_good(result)) == (word, good)


def test_a_case_without_a_result_is_not_good():
    assert not is_good(make_missing("1.1.1"))
    assert describe(make_missing("1.1.1")) == ["1.1.1: messages MISSING, closing MISSING"]


def test_table():
    results = [
        make_result("OK", case="2.1"),
        make_result("OK", case="1.1.1"),
        make_result("OK", "UNCLEAN", case="10.1.1"),
        # The suite counts the time of a case that was never opened from 1970 on.
        make_result("INFORMATIONAL", case="1.1.2", duration=1.7e12),
        make_missing("10.1.2"),
    ]
    assert [line.split() for line in tabulate(results)] == [
        ["section", "cases", "OK", "INFORMATIONAL", "MISSING", "UNCLEAN", "seconds"],
        ["1", "2", "1", "1", "0", "0", "0.2"],
        ["2", "1", "1", "0", "0", "0", "0.2"],
        ["10", "2", "0", "0", "1", "1", "0.2"],
        ["all", "5", "2", "1", "1", "1", "0.8"],
    ]


def test_description_has_the_frames():
    received = ["RF", [2, "hi"], 1, True, 0, False, None]
    sent = ["TF", [0, ""], 11, False, 4, "37fa213d", None, None, False]
    result = make_result(
        "FAILED", expected={"OK": []}, received=[], remoteCloseCode=1002, wirelog=[["CT", 1, None], sent, received]
    )
    assert describe(result) == [
        "1.1.1: messages FAILED, closing OK, our close code 1002",
        "    expected {'OK': []}",
        "    received []",
        "    suite  opcode 11 fin=0 rsv=4 0 octets ''",
        "    ours   TEXT fin=1 rsv=0 2 octets 'hi'",
    ]


def test_description_is_short():
    result = make_result("OK", "UNCLEAN", resultClose="x" * 300, wirelog=[["RF", [1, "a"], 2, True, 0]] * 30)
    lines = describe(result)
    assert max(map(len, lines)) <= 200
    assert (len(lines), lines[-1]) == (15, "    ... and 18 more frames")
