cimport cython
from geventws.dispatch cimport Dispatcher
from geventws.protocol cimport Protocol
from geventws.sockets cimport Stream
from geventws.transport cimport Transport

cdef Py_ssize_t _START
cdef double NEVER

cdef str _add_figures(str cause, double silence, Py_ssize_t unsent_size)

cdef class Endpoint(Transport):
    cdef object _config
    cdef object _context
    cdef Protocol _protocol
    cdef public object _owner
    cdef object _close_code
    cdef str _close_reason
    cdef object _closed_by
    cdef str _close_cause
    cdef double _silence
    cdef Py_ssize_t _unsent_size
    cdef object _closed_event
    cdef object _error
    cdef list _waiting_pongs
    cdef double _close_deadline
    cdef double _last_received
    cdef Py_ssize_t _receive_mark
    cdef bint _is_open
    cdef bint _is_closed
    cdef bint _is_client
    cdef bint _is_lingering
    cdef bint _is_paused
    cdef bint _has_early
    cdef bint _is_started

    @cython.locals(size=Py_ssize_t)
    cdef object _read(self, bint to_end)
    cdef object _take(self, Py_ssize_t size)
    @cython.locals(protocol=Protocol)
    cdef object _after_receive(self)
    cdef object _send_replies(self)
    cdef object _drop_pong(self)
    cdef object _count_limit(self, str name)
    cdef object _on_reading_over(self)
    cdef object _on_end_of_stream(self)
    cdef bint _is_held(self) except -1
    @cython.locals(protocol=Protocol)
    cdef object _update_reading(self)
    cdef object _settle(self)
    cdef str _describe_end(self)
    cdef str _describe_break(self)
    cdef object _start_timer(self)
    cdef object _stop_timer(self)
    cdef object _limit_closing(self)
    cdef object _note_pong(self)
    cdef object _on_ping_sent(self)
    cdef object _wake(self)
    cdef object _wake_senders(self)
    cdef object _on_closed(self)
    cdef object _on_started(self)
