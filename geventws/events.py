"""Listeners: ``on``, ``once`` and ``off`` for server, request and connection.

Nothing is allocated until somebody listens. Listeners of one event are a tuple, so that one that
adds or removes others while the event is emitted does not disturb the round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Emitter"]

_Listener = TypeVar("_Listener", bound="Callable[..., object]")


class _Once:
    """Mark a listener that is called once."""

    __slots__ = ("listener",)

    def __init__(self, listener: Callable[..., object]) -> None:
        self.listener = listener


class Emitter:
    """Be the base of what has events."""

    __slots__ = ("_listeners",)

    #: The names that `on` takes.
    EVENTS: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        self._listeners: dict[str, tuple[Any, ...]] | None = None

    def on(self, name: str, listener: Callable[..., object] | None = None) -> Callable[[_Listener], _Listener]:
        """Call ``listener`` at each ``name`` event; without a listener, be a decorator.

        Returns:
            The listener, or the decorator.

        Raises:
            ValueError: There is no event of that name here.
            TypeError: The listener cannot be called.
        """
        return self._add(name, listener, False)  # type: ignore[no-any-return]

    def once(self, name: str, listener: Callable[..., object] | None = None) -> Callable[[_Listener], _Listener]:
        """Do as `on`, for the next ``name`` event only."""
        return self._add(name, listener, True)  # type: ignore[no-any-return]

    def off(self, name: str, listener: Callable[..., object]) -> None:
        """Take away a listener that `on` or `once` added; one that is not there is no error.

        Raises:
            ValueError: There is no event of that name here.
        """
        self._check_event(name)
        there = self._get_listeners(name)
        for index, entry in enumerate(there):
            if _unwrap(entry) == listener:
                self._set_listeners(name, there[:index] + there[index + 1 :])
                return

    def listeners(self, name: str) -> list[Callable[..., object]]:
        """Return the listeners of an event, in the order in which they are called.

        Raises:
            ValueError: There is no event of that name here.
        """
        self._check_event(name)
        return [_unwrap(entry) for entry in self._get_listeners(name)]

    def _add(self, name: str, listener: Any, is_once: bool) -> Any:
        self._check_event(name)
        if listener is None:
            return lambda function: self._add(name, function, is_once)
        if not callable(listener):
            raise TypeError(f"a listener must be callable, not {type(listener).__name__}")
        self._check_listener(name)
        self._set_listeners(name, (*self._get_listeners(name), _Once(listener) if is_once else listener))
        return listener

    def _check_event(self, name: str) -> None:
        if name not in self.EVENTS:
            raise ValueError(f"{type(self).__name__} has no event {name!r}; it has {', '.join(sorted(self.EVENTS))}")

    def _check_listener(self, name: str) -> None:
        """Refuse a listener that may not be added now; a subclass may override it."""

    def _get_listeners(self, name: str) -> tuple[Any, ...]:
        if self._listeners is None:
            return ()
        return self._listeners.get(name, ())

    def _set_listeners(self, name: str, listeners: tuple[Any, ...]) -> None:
        if self._listeners is None:
            self._listeners = {}
        if listeners:
            self._listeners[name] = listeners
        else:
            self._listeners.pop(name, None)
        self._listeners_changed(name)

    def _listeners_changed(self, name: str) -> None:
        """Learn that somebody was added or taken away; a subclass may override it."""

    def _emit(self, name: str, *args: object) -> None:
        """Call the listeners one after the other; the first exception goes to the caller."""
        for entry in self._get_listeners(name):
            if type(entry) is _Once:
                # Gone before the call: a listener that emits the same event does not meet itself.
                self._forget_once(name, entry)
                entry.listener(*args)
            else:
                entry(*args)

    def _forget_once(self, name: str, entry: object) -> None:
        self._set_listeners(name, tuple(other for other in self._get_listeners(name) if other is not entry))


def _unwrap(entry: Any) -> Any:
    return entry.listener if type(entry) is _Once else entry
