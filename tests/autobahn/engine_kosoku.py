"""Run cases with kosoku; the arguments and the output are those of ``engine_wstest.py``.

The results come all at the end. One fault of kosoku 0.1.0 is mended here: sections 12 and 13 get a message that came
uncompressed as str, and raise.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys

import kosoku
from kosoku._report import case_to_dict, write_reports
from kosoku.cases import CASES


def write(value):
    print(json.dumps(value), flush=True)


def take_uncompressed_messages():
    for name, cls in CASES.items():
        if name.startswith(("12.", "13.")):
            cls.onMessage = functools.partialmethod(give_octets, cls.onMessage)


def give_octets(case, take, message, is_binary):
    if isinstance(message, str):
        message = message.encode("latin-1" if is_binary else "utf-8")
    take(case, message, is_binary)


async def test_server(url, cases):
    return await kosoku.run_fuzzingclient(url, cases)


async def test_client(cases):
    async with kosoku.run_fuzzingserver(cases, host="127.0.0.1", port=0) as server:
        write(server.port)
        return await server.get_result()


def main(role, *arguments):
    if role == "cases":
        write(list(CASES))
        return
    take_uncompressed_messages()
    reports, *arguments = arguments
    try:
        if role == "client":
            url, *cases = arguments
            results = asyncio.run(test_server(url, cases))
        else:
            results = asyncio.run(test_client(arguments))
    except kosoku.FailureError as failure:
        results = failure.results
    for result in results:
        write(case_to_dict(result))
    write_reports(results, reports)


main(*sys.argv[1:])
