cimport cython
from geventws.budget cimport OutputBudget
from geventws.dispatch cimport Deliverable, Dispatcher
from geventws.frames cimport measure_message, next_frame
from geventws.sockets cimport Stream

cdef Py_ssize_t _START
cdef Py_ssize_t _WRITE_SIZE
cdef Py_ssize_t _CORK_SIZE

cdef class Transport(Deliverable):
    cdef Dispatcher _dispatcher
    cdef Stream _stream
    cdef Py_ssize_t _send_mark
    cdef object _read_watcher
    cdef object _write_watcher
    cdef object _broken
    cdef list _cork
    cdef list _control
    cdef object _queue
    cdef bytes _message
    cdef bytes _wire
    cdef Py_ssize_t _message_at
    cdef Py_ssize_t _wire_at
    cdef Py_ssize_t _wire_stop
    cdef Py_ssize_t _frame_at
    cdef Py_ssize_t _cork_size
    cdef Py_ssize_t _output_size
    cdef public OutputBudget _budget
    cdef Py_ssize_t _accounted_size
    cdef double _last_progress
    cdef object _trace
    cdef Py_ssize_t _discarded_size
    cdef bint _is_full
    cdef bint _is_reading
    cdef bint _waits_for_write_to_read
    cdef bint _waits_for_read_to_write

    cdef object _start_reading(self)
    cdef object _stop_reading(self)
    cdef object _read_soon(self)
    @cython.locals(size=Py_ssize_t)
    cdef Py_ssize_t _receive(self) except? -9
    @cython.locals(size=Py_ssize_t, sent=Py_ssize_t)
    cdef object _write(self, bytes octets)
    @cython.locals(size=Py_ssize_t)
    cdef Py_ssize_t _send_frames(self, int opcode, object message, Py_ssize_t threshold) except -1
    cdef object _write_rest(self, bytes octets, Py_ssize_t sent)
    cdef object _note_fullness(self)
    @cython.locals(difference=Py_ssize_t)
    cdef object _account(self)
    cdef object _enqueue(self, object entry)
    cdef object _write_control(self, bytes octets)
    cdef object _cork_message(self, bytes octets)
    cdef bytes _uncork(self, bytes octets)
    cpdef object _flush(self)
    @cython.locals(sent=Py_ssize_t)
    cdef Py_ssize_t _send(self, bytes octets, Py_ssize_t start, Py_ssize_t stop) except? -9
    cdef object _break(self, object error)
    cdef object _wait_writable(self)
    @cython.locals(moved=Py_ssize_t, sent=Py_ssize_t)
    cdef object _pump(self)
    cdef bint _load_wire(self) except -1
    cdef object _set_wire(self, bytes octets)
    @cython.locals(message=bytes, stop=Py_ssize_t, size=Py_ssize_t)
    cdef object _load_part(self)
    cdef bint _may_cut(self) except -1
    @cython.locals(stop=Py_ssize_t)
    cdef object _cut_wire(self)
    @cython.locals(wire=bytes, stop=Py_ssize_t)
    cdef Py_ssize_t _find_frame(self) except -1
    @cython.locals(octets=bytes)
    cdef bytes _take_queued(self)
    @cython.locals(size=Py_ssize_t)
    cdef bytes _gather(self, bytes octets)
    cdef Py_ssize_t _drop_queued(self, Py_ssize_t excess) except -1
    cdef bytes _serialize(self, object message)
    cdef bint _has_output(self) except -1
    cdef Py_ssize_t _count_waiting(self) except? -9
    cdef Py_ssize_t _count_unsent(self) except? -9
    cdef bint _is_frame_cut(self) except -1
    cdef object _discard_output(self)
    cdef object _close_transport(self)
    cdef object _on_output_pending(self)
    cdef object _on_output_drained(self)
    cdef object _on_output_empty(self)
