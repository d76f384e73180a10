cimport cython
from libc.stdint cimport uint32_t
from geventws cimport frames
from geventws.masking cimport extend_unmasked, unmask

cdef Py_ssize_t _OVERHEAD

cdef Py_ssize_t _weigh(object event) except -1

@cython.final
cdef class Protocol:
    cdef bint _is_client
    cdef bint _assembles
    cdef bint _is_streaming
    cdef bint _is_skipping
    cdef public bint auto_pong
    cdef public bint reports_control
    cdef public bint is_discarding
    cdef public bint is_output_blocked
    cdef public bint is_close_received
    cdef public int close_code
    cdef int _first_octet
    cdef int _opcode
    cdef uint32_t _key
    cdef Py_ssize_t _max_frame_size
    cdef Py_ssize_t _max_message_size
    cdef Py_ssize_t _threshold
    cdef Py_ssize_t _taken
    cdef public Py_ssize_t queued_size
    cdef Py_ssize_t _left
    cdef Py_ssize_t _phase
    cdef Py_ssize_t _size
    cdef Py_ssize_t _fragment_count
    cdef list _inbox
    cdef public list replies
    cdef public object failure
    cdef public str close_reason
    cdef public object sent_close_code
    cdef public bytes latest_pong
    cdef bytes _head
    cdef bytes _tail
    cdef bytearray _control
    cdef bytearray _partial

    cpdef receive(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)

    @cython.locals(size=Py_ssize_t)
    cdef object _parse(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)

    @cython.locals(first=int, second=int, size=Py_ssize_t, at=Py_ssize_t)
    cdef Py_ssize_t _parse_header(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop) except -1

    @cython.locals(opcode=int)
    cdef object _check_first_octet(self, int first)
    cdef Py_ssize_t _parse_extended_size(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop) except -1
    cdef object _check_size(self, int first, Py_ssize_t size)
    cdef object _begin_data_frame(self, int first, Py_ssize_t size)
    cdef object _hold(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
    @cython.locals(have=Py_ssize_t)
    cdef object _extend_partial(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
    cdef object _check_text(self, bytes octets)
    @cython.locals(fin=bint)
    cdef object _end_fragment(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
    cdef object _end_message(self, bytes payload)
    cdef object _end_frame(self, bint fin)
    cdef object _end_piece(self, bint fin)
    @cython.locals(opcode=int)
    cdef object _end_control_frame(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
    cdef object _reply(self, bytes payload)
    cdef object _queue(self, object event)
    cpdef bint has_events(self) except -1
    cpdef bint is_next_control(self) except -1
    cpdef object take(self)
    cpdef bytes serialize(self, int opcode, bytes payload)
    cpdef bytes serialize_frame(self, int first, bytes payload)
