cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING
from geventws.masking cimport address, count_octets, is_octets

cdef extern from "_kernel.h" nogil:
    int GEVENTWS_HAS_SYSCALLS
    Py_ssize_t geventws_recv(int fd, char *buffer, Py_ssize_t size)
    Py_ssize_t geventws_send(int fd, const char *octets, Py_ssize_t size)
    Py_ssize_t geventws_send_frames(int fd, int opcode, const unsigned char *payload, Py_ssize_t size, Py_ssize_t threshold)
    int geventws_is_ended(int fd)
    void geventws_shut_write(int fd)
    void geventws_close(int fd)
    double geventws_monotonic()

cdef extern from "<errno.h>" nogil:
    int errno_again "EAGAIN"
    int errno_would_block "EWOULDBLOCK"

cpdef double monotonic() except -1

cdef class Stream:
    cdef object _sock
    cdef readonly int fd
    cpdef Py_ssize_t receive_into(self, bytearray buffer, Py_ssize_t start) except? -9
    cpdef Py_ssize_t send(self, bytes octets, Py_ssize_t start, Py_ssize_t stop) except? -9
    cpdef Py_ssize_t send_frames(self, int opcode, object message, Py_ssize_t threshold) except? -9
    cpdef bint has_pending(self) except -1
    cpdef bint must_retry(self) except -1

cdef class PlainStream(Stream):
    @cython.locals(moved=Py_ssize_t)
    cpdef Py_ssize_t receive_into(self, bytearray buffer, Py_ssize_t start) except? -9
    @cython.locals(moved=Py_ssize_t)
    cpdef Py_ssize_t send(self, bytes octets, Py_ssize_t start, Py_ssize_t stop) except? -9
    @cython.locals(moved=Py_ssize_t)
    cpdef Py_ssize_t send_frames(self, int opcode, object message, Py_ssize_t threshold) except? -9

cdef class TLSStream(Stream):
    cdef object _keep
