from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
import tracemalloc
import weakref

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue
from greenlet import GreenletExit, getcurrent

from geventws.dispatch import BATON_TIME, HEARTBEAT, Deliverable, get_dispatcher, get_thread_id
from tests.support import run_child


class Job(Deliverable):
    """Be ready: what a connection is to the dispatcher."""

    def __init__(self, action=lambda: None):
        super().__init__()
        self.action = action
        self.greenlet = None
        self.done = Event()

    def deliver(self, runner, now):
        self.greenlet = getcurrent()
        assert self.greenlet is runner
        try:
            self.action()
        finally:
            self.done.set()
        return time.monotonic()


@pytest.fixture
def dispatcher():
    return get_dispatcher()


@pytest.fixture
def order():
    return []


def add(dispatcher, *jobs):
    for job in jobs:
        dispatcher.add(job)


def test_all_that_is_ready_in_one_greenlet(dispatcher, order):
    jobs = [Job(lambda number=number: order.append(number)) for number in range(3)]
    add(dispatcher, *jobs)
    # Not before the loop has its turn.
    assert order == []
    jobs[2].done.wait()
    assert order == [0, 1, 2]
    assert len({job.greenlet for job in jobs}) == 1
    assert jobs[0].greenlet not in (getcurrent(), dispatcher.hub)


def test_parked_greenlet_is_used_again(dispatcher):
    first, second = Job(), Job()
    add(dispatcher, first)
    first.done.wait()
    add(dispatcher, second)
    second.done.wait()
    assert first.greenlet is second.greenlet


def test_ready_again_goes_to_the_end(dispatcher, order):
    again = Job(lambda: order.append("again"))
    other = Job(lambda: order.append("other"))
    once = Job(lambda: (order.append("once"), add(dispatcher, again)))
    add(dispatcher, once, other)
    again.done.wait()
    assert order == ["once", "other", "again"]


def test_one_that_blocks_does_not_hold_up_the_others(dispatcher, order):
    gate = Event()
    blocked = Job(lambda: (order.append("blocks"), gate.wait(), order.append("goes on")))
    others = [Job(lambda number=number: order.append(number)) for number in range(2)]
    add(dispatcher, blocked, *others)
    others[1].done.wait()
    assert order == ["blocks", 0, 1]
    assert others[0].greenlet is not blocked.greenlet
    gate.set()
    blocked.done.wait()
    assert order == ["blocks", 0, 1, "goes on"]
    # The one that comes back finds another parked, and ends.
    late = Job()
    add(dispatcher, late)
    late.done.wait()
    assert late.greenlet is others[0].greenlet
    assert blocked.greenlet.dead


def test_one_that_wakes_helps_with_the_list(dispatcher, order):
    gate = Event()
    blocked = Job(lambda: (gate.wait(), add(dispatcher, late)))
    late = Job(lambda: order.append("late"))
    add(dispatcher, blocked)
    gevent.sleep(0)
    gate.set()
    late.done.wait()
    assert late.greenlet is blocked.greenlet


def test_many_that_block(dispatcher, order):
    gate = Event()
    jobs = [Job(lambda number=number: (gate.wait(), order.append(number))) for number in range(50)]
    add(dispatcher, *jobs)
    last = Job()
    add(dispatcher, last)
    last.done.wait()
    assert len({job.greenlet for job in [*jobs, last]}) == 51
    gate.set()
    gevent.wait([job.done for job in jobs])
    assert sorted(order) == list(range(50))


def fail_with(error):
    raise error


def test_one_that_raises_is_reported(dispatcher, capfd):
    jobs = [Job(lambda: fail_with(ValueError("lost"))), Job()]
    add(dispatcher, *jobs)
    jobs[1].done.wait()
    assert jobs[0].greenlet is jobs[1].greenlet
    assert "ValueError: lost" in capfd.readouterr().err


def test_system_error_reaches_the_main_greenlet_and_the_others_their_turn(dispatcher, capfd):
    jobs = [Job(lambda: fail_with(SystemExit(3))), Job()]
    add(dispatcher, *jobs)
    with pytest.raises(SystemExit):
        jobs[1].done.wait()
    jobs[1].done.wait()


def test_one_that_is_killed(dispatcher, capfd):
    gate, started = Event(), Event()
    blocked, other = Job(lambda: (started.set(), gate.wait())), Job()
    add(dispatcher, blocked)
    started.wait()
    gevent.kill(blocked.greenlet)
    blocked.done.wait()
    add(dispatcher, other)
    other.done.wait()
    assert capfd.readouterr().err == ""


def test_hub_has_its_turn_between_two_that_compute(dispatcher, order):
    def compute():
        dispatcher.loop.run_callback(order.append, "hub")
        end = time.monotonic() + 2 * BATON_TIME
        while time.monotonic() < end:
            pass
        order.append("job")

    jobs = [Job(compute), Job(compute)]
    add(dispatcher, *jobs)
    jobs[1].done.wait()
    assert order[:3] == ["job", "hub", "job"]


def test_hub_has_its_turn_between_two_that_raise(dispatcher, order, capfd):
    def compute():
        dispatcher.loop.run_callback(order.append, "hub")
        end = time.monotonic() + 2 * BATON_TIME
        while time.monotonic() < end:
            pass
        order.append("job")
        raise ValueError("lost")

    jobs = [Job(compute), Job(compute)]
    add(dispatcher, *jobs)
    jobs[1].done.wait()
    assert order[:3] == ["job", "hub", "job"]
    gevent.sleep(0)
    assert capfd.readouterr().err.count("ValueError: lost") == 2


def test_long_list_keeps_its_order(dispatcher, order):
    jobs = [Job(lambda number=number: order.append(number)) for number in range(5000)]
    add(dispatcher, *jobs)
    jobs[-1].done.wait()
    assert order == list(range(5000))


def test_list_that_is_never_empty_does_not_grow(dispatcher):
    left = 50_000
    done = Event()

    def go_on():
        nonlocal left
        left -= 1
        if left > 0:
            dispatcher.add(Job(go_on))
        else:
            done.set()

    tracemalloc.start()
    try:
        # As the second of them is always there, the list has no moment in which it could begin anew.
        add(dispatcher, Job(go_on), Job(go_on))
        done.wait()
        # An entry has eight octets.
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_what_is_delivered_is_not_kept(dispatcher):
    """Others that wait behind it do not hold it either."""
    gate = Event()
    job = Job()
    kept = weakref.ref(job)
    add(dispatcher, job, Job(gate.wait))
    job.done.wait()
    del job
    gc.collect()
    assert kept() is None
    gate.set()


def test_base_is_to_be_overridden(dispatcher, capfd):
    after = Job()
    add(dispatcher, Deliverable(), after)
    after.done.wait()
    assert "NotImplementedError" in capfd.readouterr().err


def test_exception_thrown_into_the_parked_greenlet(dispatcher):
    first, second = Job(), Job()
    add(dispatcher, first)
    first.done.wait()
    gevent.sleep(0)
    gevent.kill(first.greenlet, GreenletExit)
    gevent.sleep(0)
    assert first.greenlet.dead
    add(dispatcher, second)
    second.done.wait()
    assert second.greenlet is not first.greenlet


# The clock


@pytest.fixture
def living(dispatcher):
    """Give the dispatcher of a hub that has a connection."""
    dispatcher.enter()
    yield dispatcher
    dispatcher.leave()


def test_clock_goes_on_while_the_hub_does(living):
    with passing(living):
        gevent.sleep(0.02)


@contextlib.contextmanager
def passing(dispatcher):
    """Check that the dispatcher's clock goes on as the monotonic one does."""
    earliest, before, latest = time.monotonic(), dispatcher.now(), time.monotonic()
    yield
    earliest_after, after, latest_after = time.monotonic(), dispatcher.now(), time.monotonic()
    # To the rounding of floats.
    assert earliest_after - latest - 1e-6 <= after - before <= latest_after - earliest + 1e-6


def test_clock_stands_still_while_the_hub_does(living):
    gevent.sleep(0.01)
    before, stalled = living.now(), living.stalled
    time.sleep(1.2)
    # Nobody has noticed yet; it is overdue all the same.
    assert living.now() == before
    wait_for_beat(living)
    assert living.stalled - stalled > 0.6
    assert before <= living.now() < before + 0.5


def test_clock_never_goes_back_nor_far_in_a_listener_that_asks_it_while_it_computes(living):
    gevent.sleep(0.01)
    started = time.monotonic()
    times = [living.now()]
    while time.monotonic() - started < 1.6:
        time.sleep(0.1)
        times.append(living.now())
    wait_for_beat(living)
    times.append(living.now())
    assert times == sorted(times)
    # Heartbeat and tolerance at most.
    assert times[-2] - times[0] <= 1.05


def wait_for_beat(dispatcher):
    stalled = dispatcher.stalled
    while dispatcher.stalled == stalled:
        gevent.sleep(0.001)


def test_stall_is_told_once(living, caplog):
    time.sleep(1.2)
    wait_for_beat(living)
    gevent.sleep(HEARTBEAT * 1.5)
    [message] = caplog.messages
    assert message.endswith("no time-out of its connections (1) counts that")


def test_hub_without_connections_has_no_stalls(dispatcher, caplog):
    dispatcher.enter()
    dispatcher.leave()
    stalled = dispatcher.stalled
    with passing(dispatcher):
        time.sleep(1.2)
        gevent.sleep(0.01)
    assert (dispatcher.stalled, caplog.messages) == (stalled, [])
    # What passed before does not count for the next connection.
    dispatcher.enter()
    gevent.sleep(0.01)
    dispatcher.leave()
    assert (dispatcher.stalled, caplog.messages) == (stalled, [])


def test_heart_keeps_no_loop_alive():
    output = run_child("""
import gevent
from geventws.dispatch import get_dispatcher
get_dispatcher().enter()
print(gevent.wait(timeout=None))
""")
    assert output == "True\n"


def test_a_handler_of_the_log_may_block(dispatcher):
    texts = Queue()

    class Handler(logging.Handler):
        def emit(self, record):
            gevent.sleep(0.001)
            texts.put((record.getMessage(), getcurrent() is dispatcher.hub))

    logger = logging.getLogger("geventws")
    handler = Handler()
    logger.addHandler(handler)
    try:
        dispatcher.loop.run_callback(dispatcher.log, logging.WARNING, "from %s", "the hub")
        dispatcher.log(logging.WARNING, "from a greenlet")
        assert {texts.get(), texts.get()} == {("from the hub", False), ("from a greenlet", False)}
    finally:
        logger.removeHandler(handler)


def test_log_below_the_level(dispatcher, caplog):
    caplog.set_level(logging.ERROR, "geventws")
    dispatcher.log(logging.WARNING, "unseen")
    assert caplog.messages == []


def test_one_dispatcher_for_each_hub(dispatcher):
    assert get_dispatcher() is dispatcher
    assert (dispatcher.hub, dispatcher.loop) == (gevent.get_hub(), gevent.get_hub().loop)
    others = []

    def look():
        others.append(get_dispatcher())
        gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    [other] = others
    assert other is not dispatcher
    assert other.thread_id == thread.ident


def test_thread_id(dispatcher):
    assert get_thread_id() == dispatcher.thread_id == threading.get_ident()
