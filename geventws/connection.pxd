cimport cython
from geventws.dispatch cimport Dispatcher, get_thread_id
from geventws.endpoint cimport Endpoint
from geventws.protocol cimport Protocol
from geventws.sockets cimport monotonic

cdef int TURN_COUNT
cdef double TURN_TIME

@cython.final
cdef class WebSocketConnection(Endpoint):
    cdef object __weakref__
    cdef public object data
    cdef public object subprotocol
    cdef public list extensions
    cdef public str request_path
    cdef public str remote_address
    cdef public list remote_addresses
    cdef public int websocket_version
    cdef tuple _message_listeners
    cdef tuple _frame_listeners
    cdef object _deliverer
    cdef object _drained
    cdef list _deferred
    cdef object _receiver
    cdef bint _is_ready
    cdef bint _is_close_emitted
    cdef bint _is_drain_due
    cdef bint _is_prompt
    cdef bint _is_receiving
    cdef bint _is_sending_fragments
    cdef bint _is_waiting
    cdef double _taken_at

    cpdef send(self, object message)
    cdef bint _is_foreign(self) except -1
    cdef object _send_message(self, int opcode, bytes payload)
    cpdef receive(self, object timeout=*)
    cdef object _begin_receiving(self)
    @cython.locals(protocol=Protocol, now=double)
    cdef object _next_event(self, object timeout)
    @cython.locals(protocol=Protocol)
    cdef bint _is_control_next(self) except -1
    cdef object _wait_for_event(self)
    cdef object _resume_reading(self)
    cdef object _make_ready(self)
    cdef bint _has_work(self) except -1
    cdef bint _has_deliverable(self) except -1
    @cython.locals(protocol=Protocol, count=int, started=double, before=double, now=double)
    cpdef object _deliver_turn(self)
    cdef object _emit_message(self, object message)
    cpdef object _emit_event(self, object event)
