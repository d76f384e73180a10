"""Run cases with the Autobahn test suite itself, on Python 2.7.

    engine_wstest.py cases                              every case there is
    engine_wstest.py client REPORTS URL CASE...         test the server at a URL
    engine_wstest.py server REPORTS CASE...             be the server that a client visits

Standard output is JSON, one value a line: the list of cases; or the port, in the role of the server, and then the
suite's result of each case as soon as it ended. REPORTS is a folder for the pages that the suite makes of them.
"""

import json
import os
import sys

# The suite prints what it does: that belongs to the log.
_output = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from autobahntestsuite import choosereactor  # noqa: E402, F401, I001 - must come before anything of Twisted
from autobahntestsuite import case, fuzzing  # noqa: E402
from twisted.internet import reactor  # noqa: E402


def write(value):
    _output.write(json.dumps(value) + "\n")
    _output.flush()


class Client(fuzzing.FuzzingClientFactory):
    """Connect to the server under test once for each case; this begins when it is made."""

    def logCase(self, result):  # noqa: N802
        write(result)
        fuzzing.FuzzingClientFactory.logCase(self, result)


class ServerProtocol(fuzzing.FuzzingServerProtocol):
    """End the process when the client that asked for the reports has left."""

    path = None

    def connectionLost(self, reason):  # noqa: N802
        fuzzing.FuzzingServerProtocol.connectionLost(self, reason)
        if self.path == "/updateReports":
            reactor.stop()


class Server(fuzzing.FuzzingServerFactory):
    """Run a case with whoever asks for it."""

    protocol = ServerProtocol

    def logCase(self, result):  # noqa: N802
        write(result)
        fuzzing.FuzzingServerFactory.logCase(self, result)


def main(role, *arguments):
    if role == "cases":
        write([cls.__name__[len("Case") :].replace("_", ".") for cls in case.Cases])
        return
    arguments = list(arguments)
    spec = {"outdir": arguments.pop(0)}
    if role == "client":
        spec.update(servers=[{"url": arguments.pop(0), "agent": "geventws"}], cases=arguments)
        Client(spec)
    else:
        spec.update(url="ws://127.0.0.1:0", cases=arguments)
        write(reactor.listenTCP(0, Server(spec), interface="127.0.0.1").getHost().port)
    reactor.run()


main(*sys.argv[1:])
