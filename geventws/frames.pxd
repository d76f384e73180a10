cimport cython
from libc.stdint cimport uint32_t
from geventws.masking cimport address, allocate, complete, count_octets, unmask, unmask_into

cdef extern from "_kernel.h" nogil:
    int geventws_write_header(unsigned char *header, int first, Py_ssize_t size)

cdef dict _SMALL_HEADERS
cdef list _TEXT_HEADERS
cdef list _BINARY_HEADERS

@cython.locals(size=Py_ssize_t)
cpdef bytes serialize_frame(int first, bytes payload, object key=*)

@cython.locals(octets=bytes, at=Py_ssize_t, size=Py_ssize_t)
cpdef bytes serialize_unmasked(int first, object message)
@cython.locals(others=Py_ssize_t)
cpdef Py_ssize_t measure_message(Py_ssize_t size, Py_ssize_t threshold) except -1
cdef Py_ssize_t _measure_header(Py_ssize_t size) except -1
cdef bytes _serialize_header(int first, Py_ssize_t size, int mask_bit)
cdef bytes _serialize_masked(int first, bytes payload, object key)

@cython.locals(size=Py_ssize_t, start=Py_ssize_t, stop=Py_ssize_t, at=Py_ssize_t, count=Py_ssize_t, index=Py_ssize_t, first=int, key=uint32_t, header=bytes)
cpdef bytes serialize_message(int opcode, bytes payload, Py_ssize_t threshold, list keys=*)

@cython.locals(size=Py_ssize_t, header=Py_ssize_t)
cpdef Py_ssize_t next_frame(bytes octets, Py_ssize_t start) except -1

