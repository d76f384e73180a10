cdef extern from "_memory.h":
    int geventws_keep_memory(int size)

cpdef bint tune_memory(Py_ssize_t keep=*) except -1
