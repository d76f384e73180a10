from __future__ import annotations

import pytest

from geventws.events import Emitter


class Bell(Emitter):
    """Emit for the test: an emitter's own classes do it where something happens."""

    EVENTS = frozenset({"ring", "silence"})

    def __init__(self):
        super().__init__()
        self.heard = []

    def emit(self, name, *args):
        self._emit(name, *args)

    def hear(self, *args):
        self.heard.append(args)


class WaryBell(Bell):
    """Override what a subclass may."""

    def __init__(self):
        super().__init__()
        self.changes = []

    def _check_listener(self, name):
        if name == "silence":
            raise RuntimeError("nobody may listen to silence")

    def _listeners_changed(self, name):
        self.changes.append((name, len(self.listeners(name))))


@pytest.fixture
def bell():
    return Bell()


class TestOn:
    def test_arguments(self, bell):
        assert bell.on("ring", bell.hear) == bell.hear
        bell.emit("ring", 1, "two")
        bell.emit("ring")
        bell.emit("silence", 3)
        assert bell.heard == [(1, "two"), ()]

    def test_decorator(self, bell):
        @bell.on("ring")
        def listener(number):
            bell.heard.append(number)

        bell.emit("ring", 7)
        assert bell.heard == [7]
        assert bell.listeners("ring") == [listener]

    def test_order_and_repetition(self, bell):
        bell.on("ring", lambda: bell.heard.append("first"))
        bell.on("ring", bell.hear)
        bell.on("ring", bell.hear)
        bell.emit("ring")
        assert bell.heard == ["first", (), ()]

    def test_nobody_listens(self, bell):
        bell.emit("ring")
        assert bell.listeners("ring") == []

    def test_exception_goes_to_the_emitter(self, bell):
        @bell.on("ring")
        def fail():
            raise KeyError("lost")

        bell.on("ring", bell.hear)
        with pytest.raises(KeyError, match="lost"):
            bell.emit("ring")
        assert bell.heard == []

    @pytest.mark.parametrize("listener", [7, "hear", ()])
    def test_listener_that_cannot_be_called(self, bell, listener):
        with pytest.raises(TypeError, match=f"a listener must be callable, not {type(listener).__name__}"):
            bell.on("ring", listener)


class TestOnce:
    def test_only_once(self, bell):
        assert bell.once("ring", bell.hear) == bell.hear
        bell.emit("ring", 1)
        bell.emit("ring", 2)
        assert bell.heard == [(1,)]
        assert bell.listeners("ring") == []

    def test_decorator(self, bell):
        @bell.once("ring")
        def listener():
            bell.heard.append("rang")

        assert bell.listeners("ring") == [listener]
        bell.emit("ring")
        bell.emit("ring")
        assert bell.heard == ["rang"]

    def test_others_stay(self, bell):
        bell.once("ring", bell.hear)
        bell.on("ring", bell.hear)
        bell.once("ring", bell.hear)
        bell.emit("ring", 1)
        bell.emit("ring", 2)
        assert bell.heard == [(1,), (1,), (1,), (2,)]

    def test_gone_before_it_is_called(self, bell):
        @bell.once("ring")
        def listener(depth):
            bell.heard.append(depth)
            bell.emit("ring", depth + 1)

        bell.emit("ring", 1)
        assert bell.heard == [1]

    def test_gone_although_it_raised(self, bell):
        @bell.once("ring")
        def fail():
            raise KeyError("lost")

        with pytest.raises(KeyError):
            bell.emit("ring")
        bell.emit("ring")


class TestOff:
    def test_takes_one_away(self, bell):
        bell.on("ring", bell.hear)
        bell.on("ring", bell.hear)
        bell.off("ring", bell.hear)
        bell.emit("ring")
        assert bell.heard == [()]

    def test_takes_a_once_away(self, bell):
        bell.once("ring", bell.hear)
        bell.off("ring", bell.hear)
        bell.emit("ring")
        assert bell.heard == []

    def test_finds_it_among_others(self, bell):
        bell.on("ring", bell.heard.append)
        bell.on("ring", bell.hear)
        bell.off("ring", bell.hear)
        assert bell.listeners("ring") == [bell.heard.append]

    def test_of_one_event_only(self, bell):
        bell.on("ring", bell.hear)
        bell.on("silence", bell.hear)
        bell.off("ring", bell.hear)
        assert bell.listeners("silence") == [bell.hear]

    def test_one_that_is_not_there(self, bell):
        bell.off("ring", bell.hear)
        bell.on("ring", bell.hear)
        bell.off("ring", print)
        assert bell.listeners("ring") == [bell.hear]


class TestWhileEmitting:
    def test_added_listener_waits_for_the_next_event(self, bell):
        bell.once("ring", lambda: bell.on("ring", bell.hear))
        bell.emit("ring")
        assert bell.heard == []
        bell.emit("ring")
        assert bell.heard == [()]

    def test_removed_listener_still_gets_this_one(self, bell):
        bell.on("ring", lambda: bell.off("ring", bell.hear))
        bell.on("ring", bell.hear)
        bell.emit("ring")
        bell.emit("ring")
        assert bell.heard == [()]


class TestUnknownEvents:
    @pytest.mark.parametrize(
        "call",
        [
            pytest.param(lambda bell: bell.on("rnig", print), id="on"),
            pytest.param(lambda bell: bell.on("rnig"), id="decorator"),
            pytest.param(lambda bell: bell.once("rnig", print), id="once"),
            pytest.param(lambda bell: bell.off("rnig", print), id="off"),
            pytest.param(lambda bell: bell.listeners("rnig"), id="listeners"),
        ],
    )
    def test_named_with_those_that_exist(self, bell, call):
        with pytest.raises(ValueError, match="Bell has no event 'rnig'; it has ring, silence"):
            call(bell)

    def test_an_emitter_of_its_own_has_none(self):
        with pytest.raises(ValueError, match="Emitter has no event 'ring'"):
            Emitter().on("ring", print)


class TestHooks:
    def test_refused_listener_is_not_added(self):
        bell = WaryBell()
        with pytest.raises(RuntimeError, match="nobody may listen"):
            bell.on("silence", bell.hear)
        assert bell.listeners("silence") == []
        assert bell.changes == []

    def test_changes(self):
        bell = WaryBell()
        bell.on("ring", bell.hear)
        bell.once("ring", bell.hear)
        bell.emit("ring")
        bell.off("ring", print)
        bell.off("ring", bell.hear)
        assert bell.changes == [("ring", 1), ("ring", 2), ("ring", 1), ("ring", 0)]
