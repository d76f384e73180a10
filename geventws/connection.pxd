cimport cython
from geventws.delivery cimport Receiver

@cython.final
cdef class WebSocketConnection(Receiver):
    cdef object __weakref__
    cdef public object data
    cdef public object subprotocol
    cdef public list extensions
    cdef public str request_path
    cdef public str remote_address
    cdef public list remote_addresses
    cdef public int websocket_version
