cimport cython
from geventws.dispatch cimport Dispatcher, get_thread_id
from geventws.endpoint cimport Endpoint
from geventws.protocol cimport Protocol

cdef class Sender(Endpoint):
    cdef object _drained
    cdef list _deferred
    cdef bint _is_prompt
    cdef bint _is_sending_fragments

    cpdef send(self, object message)
    cdef bint _is_foreign(self) except -1
    cdef object _send_message(self, int opcode, bytes payload)
    cdef object _on_drained(self)
