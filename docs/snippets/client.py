from gevent.pywsgi import WSGIServer

import geventws

http = WSGIServer(("127.0.0.1", 8000))
server = geventws.WebSocketServer(http_server=http, auto_accept_connections=True)


@server.on("connect")
def welcome(connection):
    connection.send("welcome")


http.start()

client = geventws.connect(
    f"ws://127.0.0.1:{http.server_port}/chat",
    subprotocols=["chat"],
    headers={"X-Client": "example"},
    connect_timeout=5,
)
print(client.subprotocol, client.receive(timeout=5))
client.close()
client.wait_closed()
print(client.close_code, client.close_cause)
