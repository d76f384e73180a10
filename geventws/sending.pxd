cimport cython
from geventws.deadlines cimport Timekeeper
from geventws.frames cimport measure_message
from geventws.dispatch cimport Dispatcher, get_current, get_thread_id
from geventws.masking cimport count_octets
from geventws.prepared cimport PreparedMessage
from geventws.protocol cimport Protocol

cdef bytes _encode(object message)

cdef class Sender(Timekeeper):
    cdef object _drained
    cdef object _deferred
    cdef Py_ssize_t _deferred_size
    cdef bint _is_prompt
    cdef bint _is_sending_fragments

    cdef Py_ssize_t _dropped_count
    cdef bint _is_dropping

    cpdef bint _is_foreign(self) except -1
    cdef bint _is_in_hub(self) except -1
    cdef object _send_message(self, int opcode, object message, bint compresses)
    @cython.locals(sent=Py_ssize_t, threshold=Py_ssize_t, octets=bytes)
    cdef object _write_message(self, int opcode, object message, bint compresses)
    cdef object _write_entry(self, object entry)
    cpdef bint _send_prepared(self, PreparedMessage message) except -1
    cdef Py_ssize_t _measure_output(self) except -1
    cdef bint _make_room(self) except -1
    cdef object _on_drained(self)

@cython.locals(connection=Sender, count=Py_ssize_t)
cpdef Py_ssize_t send_to_all(tuple connections, PreparedMessage message, object excluded) except -1
