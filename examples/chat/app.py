"""A chat on Flask: the page logs in over HTTP, and its WebSocket is known by the same session cookie.

Set SECRET_KEY in the environment to keep the sessions over a restart.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
from dataclasses import dataclass

import flask
import gevent
from gevent.pywsgi import WSGIServer
from werkzeug.wrappers import Response

from geventws import WebSocketConnection, WebSocketRequest, WebSocketServer

SUBPROTOCOL = "chat"
MAX_NAME_LENGTH = 24
MAX_TEXT_LENGTH = 1000
#: What a connection is closed with when its session ends; the page goes back to the form then.
LOGGED_OUT = 4001

app = flask.Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_bytes(32)
# Lax: a form on somebody else's page cannot log in or out for our users.
app.config.update(SESSION_COOKIE_SAMESITE="Lax", SESSION_COOKIE_NAME="chat_session")

server = WebSocketServer()


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who is logged in; one person may have several windows."""

    name: str
    session_id: str


people: dict[WebSocketConnection, Person] = {}


# The pages


def find_person() -> Person | None:
    """Return who the current request's session cookie says it is; Flask has checked its signature."""
    session = flask.session
    return Person(session["name"], session["id"]) if "name" in session else None


@app.get("/")
def show_page() -> str:
    """Show the chat, or the form to log in."""
    person = find_person()
    if person is None:
        return flask.render_template("login.html", max_length=MAX_NAME_LENGTH)
    return flask.render_template("chat.html", name=person.name, max_length=MAX_TEXT_LENGTH)


@app.post("/login")
def log_in() -> Response | tuple[str, int]:
    """Take a name that nobody else has."""
    name = " ".join(flask.request.form.get("name", "").split())
    problem = ""
    if not 1 <= len(name) <= MAX_NAME_LENGTH:
        problem = f"Please choose a name of 1 to {MAX_NAME_LENGTH} characters."
    elif name.casefold() in {person.name.casefold() for person in people.values()}:
        problem = f"Somebody called {name} is here already. Please choose another name."
    if problem:
        return flask.render_template("login.html", max_length=MAX_NAME_LENGTH, name=name, problem=problem), 400
    flask.session.update(name=name, id=secrets.token_urlsafe(16))
    return flask.redirect("/", 303)


@app.post("/logout")
def log_out() -> Response:
    """Forget the session, and close its windows."""
    leaving = find_person()
    flask.session.clear()
    for connection in [connection for connection, person in people.items() if person == leaving]:
        connection.close(LOGGED_OUT, "logged out")
    return flask.redirect("/", 303)


@app.get("/me")
def tell_name() -> tuple[dict[str, str], int]:
    """Tell a page whether it is still logged in: browsers do not tell it why a WebSocket was refused."""
    person = find_person()
    return ({"name": person.name}, 200) if person else ({}, 403)


# The WebSocket


def decide(request: WebSocketRequest) -> None:
    """Accept those who logged in; `main` says which path and origins come here."""
    with app.request_context(request.environ):
        person = find_person()
    if person is None:
        request.reject(403, "log in first")
    elif SUBPROTOCOL not in request.requested_subprotocols:
        request.reject(400, f"the subprotocol {SUBPROTOCOL} is spoken here")
    else:
        join(request.accept(SUBPROTOCOL, request.origin), person)


def join(connection: WebSocketConnection, person: Person) -> None:
    """Let somebody take part until the connection ends."""
    is_new = person not in people.values()
    people[connection] = person

    def say(text: str | bytes) -> None:
        if not isinstance(text, str) or len(text) > MAX_TEXT_LENGTH:
            connection.close(1008, f"text of up to {MAX_TEXT_LENGTH} characters, please")
        elif text.strip():
            broadcast(type="message", name=person.name, text=text)

    def leave(code: int, reason: str) -> None:
        del people[connection]
        tell_who_is_there(left=None if person in people.values() else person.name)

    connection.on("close", leave)
    connection.on("message", say)
    tell_who_is_there(joined=person.name if is_new else None)


def tell_who_is_there(**news: str | None) -> None:
    """Send everybody the list of names, and who has joined or left."""
    broadcast(type="people", names=sorted({person.name for person in people.values()}, key=str.casefold), **news)


def broadcast(**event: object) -> None:
    """Send everybody an event as JSON."""
    server.broadcast(json.dumps(event))


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    http = WSGIServer(("127.0.0.1", parser.parse_args().port), app)
    http.start()
    origins = [f"http://{host}:{http.server_port}" for host in ("127.0.0.1", "localhost")]
    # A browser sends the cookie along whichever page connects: only our own may.
    server.mount(http_server=http, path="/chat", allowed_origins=origins, max_received_message_size=16384)
    server.on("request", decide)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, http.stop)
    print(f"listening on {origins[0]}/", flush=True)
    http.serve_forever()


if __name__ == "__main__":
    main()
