from gevent.pywsgi import WSGIServer

import geventws


class Handler(geventws.WebSocketHandler):
    config = geventws.ServerConfig(max_received_message_size=16, keepalive_interval=5)


def app(environ, start_response):
    request = environ.get("geventws.request")
    if request is None:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"no upgrade request\n"]
    if request.origin == "https://example.com":
        connection = request.accept()
        for message in connection:
            connection.send(message)
    else:
        request.reject(403, "wrong origin")
    return []


http = WSGIServer(("127.0.0.1", 8000), app, handler_class=Handler)
http.serve_forever()
