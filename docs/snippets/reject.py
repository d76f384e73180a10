from gevent.pywsgi import WSGIServer
from webob.exc import HTTPTooManyRequests

from geventws import WebSocketServer

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http)


@server.on("request")
def decide(request):
    if request.resource_url.path.startswith("/other"):
        request.ignore()
    elif request.resource_url.query.get("token") != "open sesame":
        request.reject(401, "wrong token", headers={"WWW-Authenticate": "Bearer"})
    elif len(server.connections) >= 2:
        request.reject(HTTPTooManyRequests(retry_after=30))
    elif "chat" not in request.requested_subprotocols:
        request.reject(400, "the subprotocol is chat")
    else:
        request.accept("chat", headers={"X-Served-By": "geventws"}, cookies=[{"name": "seen", "value": "yes"}])


http.serve_forever()
