"""`tune_memory` is for the whole process, so whatever calls it is a child."""

from __future__ import annotations

import json
import sys

import pytest

import geventws
from geventws import tune_memory
from tests.support import run_child

START = """
import json, resource, sys, threading
import gevent, geventws

def count_faults(work):
    "Tell how often the system had to give a page while something ran."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def allocate():
    # Together they are more than glibc keeps, which adapts itself to the largest block.
    for _ in range(5):
        [bytearray(1 << 20) for _ in range(8)]

def nap():
    gevent.sleep(0)

def spawn():
    for _ in range(500):
        gevent.spawn(nap).join()

def dive(depth):
    "Need more of the stack than a piece of 16 KiB has, and hold it for a turn."
    gevent.sleep(0)
    return dive(depth - 1) if depth else 0

def dive_together(count=50, depth=300):
    gevent.joinall([gevent.spawn(dive, depth) for _ in range(count)], raise_error=True)
"""

EFFECT = """
figures = []
for _ in range(3):
    figures.append([count_faults(allocate), count_faults(spawn)])
    is_told = geventws.tune_memory(*map(int, sys.argv[1:]))
print(json.dumps([is_told, figures]))
"""

ACROSS = """
def wait(event, depth):
    if depth:
        return wait(event, depth - 1)
    event.wait()
    return sum(range(1000))

def start_waiting():
    event = gevent.event.Event()
    greenlets = [gevent.spawn(wait, event, depth) for depth in range(0, 400, 10)]
    gevent.sleep(0)
    return event, greenlets

import gevent.event
before = start_waiting()
things = [{number: [str(number)]} for number in range(100000)]
geventws.tune_memory()
after = start_waiting()
del things
things = [{number: [str(number)]} for number in range(200000)]
dive_together()
for event, greenlets in (before, after):
    event.set()
    gevent.joinall(greenlets, raise_error=True)
    assert [each.value for each in greenlets] == [499500] * 40
del things
print(len([{number: [str(number)]} for number in range(100000)]))
"""

THREADS = """
def work():
    for _ in range(5):
        dive_together(20, 100)
        allocate()

started = threading.Barrier(5)

def run():
    started.wait()
    work()
    gevent.get_hub().destroy()

threads = [threading.Thread(target=run) for _ in range(4)]
for thread in threads:
    thread.start()
started.wait()
for _ in range(20):
    geventws.tune_memory()
    work()
for thread in threads:
    thread.join()
print("done")
"""


@pytest.fixture(scope="module")
def is_told():
    """Tell whether the C library takes such settings: glibc does, and AddressSanitizer, in its place, does not."""
    return json.loads(run_child("import geventws, json; print(json.dumps(geventws.tune_memory()))"))


@pytest.mark.parametrize(
    ("keep", "error"),
    [
        pytest.param(-1, ValueError, id="negative"),
        pytest.param(2**31, ValueError, id="too large"),
        pytest.param(2**80, ValueError, id="far too large"),
        pytest.param("1", TypeError, id="str"),
        pytest.param(1.0, TypeError, id="float"),
        pytest.param(True, TypeError, id="bool"),
        pytest.param(None, TypeError, id="None"),
    ],
)
def test_wrong_arguments(keep, error):
    with pytest.raises(error, match="keep must be"):
        tune_memory(keep)


@pytest.mark.parametrize("keep", [(), ("67108864",), (str(2**31 - 1),)])
def test_effect(keep, is_told):
    if not is_told:
        pytest.skip("the C library takes no settings")
    result, (before, after, again) = json.loads(run_child(START + EFFECT, *keep))
    assert result is True
    # A page of each block at least, however many the system gives at once; and then once more, for what is kept.
    assert before[0] >= 40
    assert again[0] < before[0] / 10
    if geventws.COMPILED and sys.version_info >= (3, 11):
        # One for the stack of each greenlet, at least; before Python 3.11 there is none.
        assert before[1] >= 500
        assert max(after[1], again[1]) < 50


def test_nothing_is_kept_that_is_not_to_be(is_told):
    if not is_told:
        pytest.skip("the C library takes no settings")
    _, (before, _, again) = json.loads(run_child(START + EFFECT, "0"))
    assert again[0] > before[0] / 2


@pytest.mark.parametrize("source", [ACROSS, THREADS], ids=["across the call", "threads"])
def test_what_was_got_before_and_after(source):
    """Each piece goes back to where it came from; otherwise the child would crash."""
    assert run_child(START + source)


@pytest.mark.parametrize("name", ["ctypes", "_ctypes"])
def test_a_python_without_ctypes(name, is_told):
    source = "import sys; sys.modules[sys.argv[1]] = None; import geventws; print(geventws.tune_memory())"
    assert run_child(source, name).strip() == str(geventws.COMPILED and is_told)


def test_a_c_library_without_such_settings(is_told):
    source = """
import ctypes, geventws.memory
ctypes.CDLL = lambda name: object()
print(geventws.memory.tune_memory())
"""
    assert run_child(source).strip() == str(geventws.COMPILED and is_told)
