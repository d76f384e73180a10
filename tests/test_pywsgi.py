"""gevent's own tests of pywsgi do as well with our handler as with the stock one.

They run in child processes: they print a lot, and one of the two modules patches what the other wants unpatched.
"""

from __future__ import annotations

import json

import gevent
import pytest

from tests.support import run_child

#: What the stock handler reaches, by the release of gevent: tests that are run, and skipped among them.
STOCK = {"26.9": (157, 8)}

SCRIPT = """
import importlib, json, sys, unittest
from gevent import pywsgi
from geventws import WebSocketHandler, WebSocketServer

def substitute(module, target):
    pywsgi.WSGIServer.handler_class = target
    for case in list(vars(module).values()):
        # Some cases bring a handler class of their own: ours goes below it, as below a user's.
        if isinstance(case, type) and "handler_class" in vars(case):
            case.handler_class = type("handler_class", (case.handler_class, target), {})

def mount_each():
    make = pywsgi.WSGIServer.__init__

    def make_and_mount(self, *args, **options):
        make(self, *args, **options)
        server = WebSocketServer(http_server=self, path="/geventws")
        server.on("request", lambda request: request.accept())

    pywsgi.WSGIServer.__init__ = make_and_mount

how, name = sys.argv[1:]
module = importlib.import_module(name)
if how == "class":
    substitute(module, WebSocketHandler)
else:
    mount_each()
suite = unittest.TestLoader().loadTestsFromModule(module)
result = unittest.TextTestRunner(stream=sys.stderr).run(suite)
faults = [f"{case}\\n{text}" for case, text in result.failures + result.errors]
print(json.dumps({"run": result.testsRun, "skipped": len(result.skipped), "faults": faults}))
"""


@pytest.mark.limit(150)
@pytest.mark.parametrize("how", ["class", "mount"])
def test_gevents_own_tests(how):
    names = ("gevent.tests.test__pywsgi", "gevent.tests.test__server_pywsgi")
    children = [gevent.spawn(run_child, SCRIPT, how, name, timeout=120) for name in names]
    results = [json.loads(child.get().splitlines()[-1]) for child in children]
    faults = [fault for result in results for fault in result["faults"]]
    run, skipped = (sum(result[name] for result in results) for name in ("run", "skipped"))
    print(f"{how}: {run} run, {skipped} skipped, {len(faults)} failed")  # noqa: T201
    assert not faults, "\n".join(faults)
    assert (run, skipped) == STOCK.get(gevent.__version__.rpartition(".")[0], (run, skipped))
