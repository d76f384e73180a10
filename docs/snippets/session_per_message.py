from gevent.pywsgi import WSGIServer
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from geventws import WebSocketServer

Session = sessionmaker(create_engine("sqlite:///notes.db"))

with Session.begin() as session:
    session.execute(text("CREATE TABLE IF NOT EXISTS notes (note TEXT)"))

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http)


@server.on("request")
def decide(request):
    connection = request.accept()

    @connection.on("message")
    def store(message):
        with Session.begin() as session:
            session.execute(text("INSERT INTO notes VALUES (:note)"), {"note": message})
            count = session.scalar(text("SELECT COUNT(*) FROM notes"))
        connection.send(f"{count} notes")


http.serve_forever()
