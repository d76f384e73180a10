from geventws.endpoint cimport Endpoint

cdef double NEVER

cdef class Timekeeper(Endpoint):
    cdef object _latency
    cdef object _timer
    cdef bytes _ping_payload
    cdef double _ping_sent_at
    cdef double _ping_time
    cdef double _stuck_since
    cdef double _timer_deadline

    cdef object _set_deadline(self, double when)
