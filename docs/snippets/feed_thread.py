import threading

from gevent.pywsgi import WSGIServer

from geventws import ConnectionClosed, WebSocketServer

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http)


def read_sensor(connection):
    # A native thread: it may block as it likes, and holds up no greenlet.
    for value in range(3):
        future = connection.send_threadsafe(f"value {value}")
        try:
            future.result(timeout=10)
        except ConnectionClosed:
            return


@server.on("connect")
def start_feed(connection):
    threading.Thread(target=read_sensor, args=(connection,), daemon=True).start()


@server.on("request")
def decide(request):
    request.accept()


http.serve_forever()
