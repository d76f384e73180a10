cimport cython

cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1

from geventws.dispatch cimport get_current, switch_to
from geventws.protocol cimport Protocol
from geventws.sending cimport Sender
from geventws.sockets cimport monotonic

cdef int TURN_COUNT
cdef double TURN_TIME

cdef class Receiver(Sender):
    cdef tuple _message_listeners
    cdef tuple _frame_listeners
    cdef object _deliverer
    cdef object _receiver
    cdef bint _is_ready
    cdef bint _is_close_emitted
    cdef bint _is_drain_due
    cdef bint _is_receiving
    cdef bint _is_waiting
    cdef double _taken_at

    cpdef receive(self, object timeout=*)
    cdef object _begin_receiving(self)
    @cython.locals(protocol=Protocol, now=double, received=double)
    cdef object _next_event(self, object timeout)
    @cython.locals(protocol=Protocol)
    cdef bint _is_control_next(self) except -1
    cdef object _wait_for_event(self)
    cdef object _resume_reading(self)
    cdef object _make_ready(self)
    cdef bint _has_work(self) except -1
    cdef bint _has_deliverable(self) except -1
    cpdef double deliver(self, object runner, double now) except? -1
    cdef double _deliver_in_context(self, double now) except? -1
    @cython.locals(protocol=Protocol, count=int, started=double, before=double)
    cpdef double _deliver_turn(self, double now) except? -1
    cdef object _emit_message(self, object message)
    cpdef object _emit_event(self, object event)
