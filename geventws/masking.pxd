cimport cython
from libc.stdint cimport uint32_t
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Resize

cdef extern from "_kernel.h" nogil:
    void geventws_xor(unsigned char *target, const unsigned char *source, Py_ssize_t size, uint32_t key, Py_ssize_t phase)

cdef inline unsigned char *address(object octets):
    if type(octets) is bytearray:
        return <unsigned char *>PyByteArray_AS_STRING(octets)
    return <unsigned char *>PyBytes_AS_STRING(octets)

@cython.locals(payload=bytes)
cpdef bytes unmask(object octets, Py_ssize_t start, Py_ssize_t stop, uint32_t key, Py_ssize_t phase)

@cython.locals(have=Py_ssize_t)
cpdef object extend_unmasked(bytearray target, bytearray octets, Py_ssize_t start, Py_ssize_t stop, uint32_t key, Py_ssize_t phase)

cpdef object allocate(Py_ssize_t size)
cpdef object unmask_into(object target, Py_ssize_t at, object octets, Py_ssize_t start, Py_ssize_t stop, uint32_t key, Py_ssize_t phase)
cpdef bytes complete(object target)
