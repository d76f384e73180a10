"""What every test gets: a time limit, a check that it left nothing behind, and `require`.

The tests of the modules without I/O are exempt from the first two: they have nothing to wait for and nothing to leave.
For the others the limit is a `gevent.Timeout`, so it strikes a test that waits; ``@pytest.mark.limit(seconds)`` sets
another. What a test left is told by the garbage collector: what existed before the test is frozen, so a look at the
remaining objects costs little and shows the test's own alone.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import shutil
import time
import weakref
from pathlib import Path
from typing import NamedTuple

import gevent
import hypothesis
import pytest
from gevent.hub import Hub
from greenlet import greenlet

TIME_LIMIT = 30.0
# Connections that linger, and peers that are told of an end, may take so long after a test.
SETTLING_TIME = 3.0
SANS_IO = {
    *("errors", "masking", "frames", "headers", "cookies", "proxies", "deflate", "handshake", "inbox", "trace"),
    *("protocol", "prepared", "config", "head", "fuzz"),
}
FAILED = pytest.StashKey[bool]()
LOOP = gevent.get_hub().loop
WATCHERS = (type(LOOP.io(0, 1)), type(LOOP.timer(1)))

# A slow machine is no fault of the code, and a run of CI is to be repeatable.
hypothesis.settings.register_profile("geventws", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("geventws")


def pytest_report_header():
    loop = f"{LOOP.__class__.__module__}.{LOOP.__class__.__name__}"
    try:
        import geventws  # noqa: PLC0415 - without it pytest should still come up and show which tests fail
    except ImportError as error:
        return f"geventws: cannot be imported ({error}), gevent {gevent.__version__}, {loop}"
    build = {True: "compiled", False: "plain Python"}.get(getattr(geventws, "COMPILED", None), "unknown build")
    return f"geventws: {build}, from {os.path.dirname(geventws.__file__)}, gevent {gevent.__version__}, {loop}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


class Requirement(NamedTuple):
    programs: tuple[str, ...]
    modules: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def list_missing(self):
        tests = Path(__file__).parent
        return [
            *(program for program in self.programs if shutil.which(program) is None),
            *(module for module in self.modules if importlib.util.find_spec(module) is None),
            *(path for path in self.paths if not tests.joinpath(path).exists()),
        ]


REQUIREMENTS = {
    "cc": Requirement(("cc", "make"), paths=("/usr/include/openssl/ssl.h", "/usr/include/zlib.h")),
    "chromium": Requirement(("chromium", "chromedriver"), modules=("selenium",)),
    "node": Requirement(("node",), paths=("node/node_modules/websocket", "node/node_modules/ws")),
}


@pytest.fixture
def require():
    """Give a function that returns the path of a program, or skips the test where something of it is missing.

    Where ``GEVENTWS_REQUIRE`` (names with commas between) holds the name, the test fails instead.
    """
    return find_program


def find_program(name):
    requirement = REQUIREMENTS.get(name, Requirement((name,)))
    if missing := requirement.list_missing():
        end = pytest.fail if name in os.environ.get("GEVENTWS_REQUIRE", "").split(",") else pytest.skip
        end(f"{name} needs {', '.join(missing)}, not found here")
    return shutil.which(requirement.programs[0])


@pytest.fixture
def compressions(monkeypatch):
    """Count the messages that all connections inflate (``in``) and compress (``out``)."""
    from geventws.deflate import Deflate  # noqa: PLC0415 - as above

    counts = {"in": 0, "out": 0}
    inflate, compress = Deflate.inflate, Deflate.compress

    def count_in(self, octets, fin):
        counts["in"] += fin
        return inflate(self, octets, fin)

    def count_out(self, payload):
        counts["out"] += 1
        return compress(self, payload)

    monkeypatch.setattr(Deflate, "inflate", count_in)
    monkeypatch.setattr(Deflate, "compress", count_out)
    return counts


@pytest.fixture(scope="session")
def warm_hub():
    """Have gevent open now what it keeps open from the first use on: its loop's and its thread pool's descriptors."""
    gevent.get_hub().threadpool.apply(int)


@pytest.fixture(autouse=True)
def guard(request):
    """Limit the test's time, and fail it for what it leaves behind."""
    if request.path.stem.removeprefix("test_") in SANS_IO:
        yield
        return
    request.getfixturevalue("warm_hub")
    marker = request.node.get_closest_marker("limit")
    timeout = gevent.Timeout.start_new(marker.args[0] if marker else TIME_LIMIT)
    leaks = LeakCheck()
    try:
        yield
    finally:
        timeout.close()
        # A failed test's traceback keeps its objects, and its own message is the one to read.
        is_failed = request.node.stash.get(FAILED, False)
        left = leaks.settle(0.0 if is_failed else SETTLING_TIME)
    if left and not is_failed:
        pytest.fail("the test left behind:\n" + "\n".join(left), pytrace=False)


class LeakCheck:
    """What was open when it was made, and what is there since."""

    # The dispatcher that waits for the next connection with work stays as long as its hub, whichever test made it.
    parked = staticmethod(lambda: None)

    def __init__(self):
        self.descriptors = list_descriptors()
        gc.freeze()

    def settle(self, seconds):
        """Run the hub until nothing is left, or for so many seconds; return what is left all the same."""
        deadline = time.monotonic() + seconds
        pause = 0.0
        gevent.sleep(0)
        while (left := self.list_left()) and time.monotonic() < deadline:
            gc.collect()
            gevent.sleep(pause)
            pause = min(pause + 0.001, 0.02)
        gc.unfreeze()
        if left:
            # If it was the dispatcher, held up in a listener, one test has told it.
            LeakCheck.parked = staticmethod(lambda: None)
        return left

    def list_left(self):
        return [*self.list_objects(), *sorted(list_descriptors() - self.descriptors)]

    def list_objects(self):
        # Not isinstance: some libraries have proxies that answer it wrongly, or raise.
        news = [thing for thing in gc.get_objects() if issubclass(type(thing), (greenlet, *WATCHERS))]
        if (parked := self.parked()) is not None and not any(thing is parked for thing in news):
            news.append(parked)
        for thing in news:
            if issubclass(type(thing), WATCHERS):
                if thing.active:
                    yield f"an active watcher, {thing!r}"
            elif is_unfinished(thing) and not self.is_parked_dispatcher(thing):
                yield describe_greenlet(thing)

    def is_parked_dispatcher(self, thing):
        if not is_in_dispatcher(thing):
            return False
        if self.parked() is None or self.parked().dead:
            LeakCheck.parked = weakref.ref(thing)
        return self.parked() is thing


def is_in_dispatcher(thing):
    """Tell whether a greenlet waits in the dispatcher's own code, which leaves no frame where it is compiled."""
    frame = thing.gr_frame
    is_own_code = frame is None or Path(frame.f_code.co_filename).name == "dispatch.py"
    return is_own_code and not isinstance(thing, gevent.Greenlet)


def is_unfinished(thing):
    # Hubs, main greenlets and the workers of thread pools live as long as their threads.
    is_gevents_own = isinstance(thing, Hub) or type(thing).__module__ == "gevent.threadpool" or thing.parent is None
    return bool(thing) and not is_gevents_own and thing is not gevent.getcurrent()


def describe_greenlet(thing):
    frame = thing.gr_frame
    place = f", at {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else ""
    return f"an unfinished greenlet, {thing!r}{place}"


def list_descriptors():
    """Return the open descriptors of the process, and nothing on a system without ``/proc``."""
    names = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    descriptors = set()
    for name in names:
        # The listing's own descriptor is among them, and gone.
        with contextlib.suppress(FileNotFoundError):
            descriptors.add(f"descriptor {name}, {os.readlink(f'/proc/self/fd/{name}')}")
    return descriptors
