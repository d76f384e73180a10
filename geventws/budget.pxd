cimport cython

@cython.final
cdef class OutputBudget:
    cdef public Py_ssize_t limit
    cdef readonly Py_ssize_t total
    cdef object _relieve
    cdef bint _is_relieving

    cpdef object change(self, Py_ssize_t difference)
