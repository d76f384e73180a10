from contextvars import ContextVar

from gevent.pywsgi import WSGIServer
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker

from geventws import WebSocketServer


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


engine = create_engine("sqlite:///notes.db")
Base.metadata.create_all(engine)

# Without scopefunc a scope would be a thread or greenlet, and those are shared between connections.
scope: ContextVar[object] = ContextVar("scope")
Session = scoped_session(sessionmaker(engine), scopefunc=scope.get)

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http)


@server.on("request")
def decide(request):
    scope.set(object())
    connection = request.accept()

    @connection.on("message")
    def store(message):
        Session.add(Note(text=message))
        Session.commit()
        connection.send(f"{Session.scalar(select(func.count(Note.id)))} notes")

    @connection.on("close")
    def give_back(code, reason):
        Session.remove()


http.serve_forever()
