cimport cython

cdef dict _SMALL_HEADERS
cdef list _TEXT_HEADERS
cdef list _BINARY_HEADERS

@cython.locals(size=Py_ssize_t)
cpdef bytes serialize_frame(int first, bytes payload, object key=*)

cdef bytes _serialize_header(int first, Py_ssize_t size, int mask_bit)
cdef bytes _serialize_masked(int first, bytes payload, object key)

@cython.locals(size=Py_ssize_t, start=Py_ssize_t, first=int, frames=list)
cpdef bytes serialize_message(int opcode, bytes payload, Py_ssize_t threshold, list keys=*)

@cython.locals(size=Py_ssize_t, header=Py_ssize_t)
cpdef Py_ssize_t next_frame(bytes octets, Py_ssize_t start) except -1

