"""Run cases with kosoku; the arguments and the output are those of ``engine_wstest.py``.

The results come all at the end.
"""

from __future__ import annotations

import asyncio
import json
import sys

import kosoku
from kosoku._report import case_to_dict, write_reports


def write(value):
    print(json.dumps(value), flush=True)


async def test_server(url, cases):
    return await kosoku.run_fuzzingclient(url, cases)


async def test_client(cases):
    async with kosoku.run_fuzzingserver(cases, host="127.0.0.1", port=0) as server:
        write(server.port)
        return await server.get_result()


def main(role, *arguments):
    if role == "cases":
        # Its import is for this use alone: a run leaves it to kosoku.
        from kosoku.cases import CASES  # noqa: PLC0415

        write(list(CASES))
        return
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
