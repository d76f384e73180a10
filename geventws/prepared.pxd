cimport cython
from geventws.protocol cimport Protocol

@cython.final
cdef class PreparedMessage:
    cdef int _first
    cdef bint _compresses
    cdef bint _is_fragment
    cdef readonly bint is_droppable
    cdef bytes _payload
    cdef dict _made
    cdef bytes _plain
    cdef Py_ssize_t _plain_threshold
    @cython.locals(octets=bytes, threshold=Py_ssize_t)
    cpdef bytes serialize(self, Protocol protocol)
