cdef extern from "_memory.h":
    int geventws_keep_memory(int size)

cpdef bint tune_memory(object keep=*) except -1
