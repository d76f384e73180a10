cimport cython
from libc.stdint cimport uint32_t
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Resize

cdef extern from "_kernel.h" nogil:
    void geventws_xor(unsigned char *target, const unsigned char *source, Py_ssize_t size, uint32_t key, Py_ssize_t phase)

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char *octets, Py_ssize_t size, const char *errors)
    bint PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    Py_ssize_t PyBytes_GET_SIZE(object octets)
    void *PyUnicode_1BYTE_DATA(object text)

cdef inline str decode_utf_8(const unsigned char *octets, Py_ssize_t size):
    return PyUnicode_DecodeUTF8(<const char *>octets, size, NULL)

cdef inline unsigned char *address(object octets):
    """Return where octets lie, those of a text if they are ASCII alone."""
    if type(octets) is bytearray:
        return <unsigned char *>PyByteArray_AS_STRING(octets)
    if type(octets) is str:
        return <unsigned char *>PyUnicode_1BYTE_DATA(octets)
    return <unsigned char *>PyBytes_AS_STRING(octets)

cpdef Py_ssize_t count_octets(object message) except -1
cpdef bint is_octets(object message) except -1

@cython.locals(payload=bytes)
cpdef bytes unmask(object octets, Py_ssize_t start, Py_ssize_t stop, uint32_t key, Py_ssize_t phase)

@cython.locals(octets="unsigned char *")
cpdef str unmask_text(bytearray buffer, Py_ssize_t start, Py_ssize_t stop, uint32_t key)

@cython.locals(have=Py_ssize_t)
cpdef object extend_unmasked(bytearray target, bytearray octets, Py_ssize_t start, Py_ssize_t stop, uint32_t key, Py_ssize_t phase)

cpdef object allocate(Py_ssize_t size)
cpdef object unmask_into(object target, Py_ssize_t at, object octets, Py_ssize_t start, Py_ssize_t stop, uint32_t key, Py_ssize_t phase)
cpdef bytes complete(object target)
