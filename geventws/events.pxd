cdef class _Once:
    cdef public object listener

cdef class Emitter:
    cdef dict _listeners
    cpdef tuple _get_listeners(self, str name)
