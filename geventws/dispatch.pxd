cimport cython
from cpython.pythread cimport PyThread_get_thread_ident
from geventws.events cimport Emitter
from geventws.sockets cimport monotonic

cdef extern from "_greenlet.h":
    int geventws_import_greenlet() except -1
    object geventws_get_current()
    object geventws_switch(object greenlet)

cpdef object get_current()
cpdef object switch_to(object target)
cpdef unsigned long get_thread_id() except? 0

cdef double _BATON_TIME

cdef class Deliverable(Emitter):
    cpdef double deliver(self, object runner, double now) except? -1

@cython.final
cdef class Dispatcher:
    cdef object __weakref__
    cdef readonly object hub
    cdef readonly object loop
    cdef readonly unsigned long thread_id
    cdef readonly bytearray buffer
    cdef readonly object compressors
    cdef readonly bint passes_events
    cdef readonly Py_ssize_t connection_count
    cdef readonly double stalled
    cdef double _now
    cdef double _latest_beat
    cdef object _heart
    cdef list _ready
    cdef Py_ssize_t _taken
    cdef object _parked
    cdef object _again
    cdef bint _is_scheduled
    @cython.locals(now=double)
    cpdef double now(self) except? -1
    cpdef enter(self)
    cpdef leave(self)
    cpdef add(self, Deliverable connection)
    cdef object _schedule(self)
    @cython.locals(started=double, now=double)
    cdef object _deliver(self)
    @cython.locals(connection=Deliverable)
    cdef Deliverable _take(self)
