cimport cython
from geventws.masking cimport count_octets, is_octets

cdef Py_ssize_t _OVERHEAD

cdef Py_ssize_t _weigh(object event) except -1

cdef class Inbox:
    cdef list _inbox
    cdef Py_ssize_t _taken
    cdef public Py_ssize_t queued_size
    cdef public bint is_discarding

    cdef object _queue_message(self, object message, Py_ssize_t size)
    cdef object _queue(self, object event)
    cpdef bint has_events(self) except -1
    cpdef bint is_next_control(self) except -1
    cpdef object take(self)
    cdef object _drop_fragments(self)
