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
    @cython.locals(octets=bytes)
    cpdef bytes serialize(self, Protocol protocol)
