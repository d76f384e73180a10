cimport cython
from libc.stdint cimport uint32_t
from geventws cimport frames
from geventws.inbox cimport Inbox
from geventws.masking cimport allocate, complete, count_octets, extend_unmasked, is_octets, unmask, unmask_into, unmask_text

cdef int _RSV1
cdef Py_ssize_t _SLACK
cdef Py_ssize_t _FRAGMENT_SLACK
cdef Py_ssize_t _TRUST

@cython.final
cdef class Protocol(Inbox):
    cdef object _deflate
    cdef bint _is_compressed
    cdef bint _is_client
    cdef bint _assembles
    cdef bint _is_streaming
    cdef bint _is_skipping
    cdef public bint auto_pong
    cdef public bint reports_control
    cdef public bint is_output_blocked
    cdef public bint is_close_received
    cdef public int close_code
    cdef int _first_octet
    cdef int _opcode
    cdef uint32_t _key
    cdef Py_ssize_t _max_frame_size
    cdef Py_ssize_t _max_message_size
    cdef Py_ssize_t _max_fragment_count
    cdef Py_ssize_t _max_reply_count
    cdef Py_ssize_t _max_queued_size
    cdef Py_ssize_t _threshold
    cdef readonly Py_ssize_t plain_threshold
    cdef Py_ssize_t _left
    cdef Py_ssize_t _phase
    cdef Py_ssize_t _size
    cdef Py_ssize_t _fragment_count
    cdef public list replies
    cdef public object failure
    cdef public str close_reason
    cdef public object sent_close_code
    cdef public bytes latest_pong
    cdef public object trace
    cdef bytes _head
    cdef bytes _tail
    cdef bytearray _control
    cdef bytearray _partial
    cdef object _whole
    cdef bytearray _backlog
    cdef bytearray _inflated

    cpdef receive(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)

    cpdef bint has_backlog(self) except -1

    @cython.locals(size=Py_ssize_t)
    cdef object _parse(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)

    @cython.locals(first=int, second=int, size=Py_ssize_t, at=Py_ssize_t, last=uint32_t)
    cdef Py_ssize_t _parse_header(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop) except -1

    @cython.locals(opcode=int)
    cdef object _check_first_octet(self, int first)
    cdef Py_ssize_t _parse_extended_size(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop) except -1
    cdef object _check_reserved_bits(self, int first, int opcode)
    cdef object _check_size(self, int first, Py_ssize_t size)
    @cython.locals(slack=Py_ssize_t)
    cdef object _check_message_size(self, int first, Py_ssize_t size)
    cdef object _begin_data_frame(self, int first, Py_ssize_t size)
    cdef object _hold(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
    @cython.locals(have=Py_ssize_t)
    cdef bint _begin_whole(self, Py_ssize_t size) except -1
    cdef object _extend_whole(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
    @cython.locals(payload=bytes)
    cdef object _end_whole(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
    cdef object _keep_as_partial(self)
    @cython.locals(have=Py_ssize_t)
    cdef object _extend_partial(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop, bint ends)
    @cython.locals(inflated=bytes)
    cdef object _extend_inflated(self, bytes octets, bint ends)
    cdef bytes _inflate(self, bytes octets, bint ends)
    cdef object _check_text(self, bytes octets)
    @cython.locals(fin=bint)
    cdef object _end_fragment(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
    @cython.locals(payload=bytes)
    cdef object _end_data_frame(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
    cdef object _end_text(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
    cdef object _end_message(self, bytes payload)
    cdef object _end_frame(self, bint fin)
    cdef object _end_piece(self, bint fin)
    @cython.locals(opcode=int)
    cdef object _end_control_frame(self, bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
    cdef object _reply(self, bytes payload)
    @cython.locals(compressed=bytes, payload=bytes)
    cpdef bytes serialize(self, int opcode, object message, bint compresses=*)
    cpdef bytes serialize_frame(self, int first, bytes payload)
    cpdef bytes serialize_fragment(self, int first, bytes payload, bint compresses)
    cpdef object make_sharing_key(self)
    cpdef bint compresses(self) except -1
