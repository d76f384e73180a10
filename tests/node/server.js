// The server of the npm package `ws` for tests/test_interop.py: prints its port, and ends with its standard input.
"use strict";

const { WebSocketServer } = require("ws");

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: 0,
  handleProtocols: (offered) => offered.has("chat") && "chat",
  verifyClient: ({ req }, done) => {
    if (req.url === "/refused") {
      done(false, 403, "", { "X-WebSocket-Reject-Reason": "not today" });
    } else {
      done(true);
    }
  },
  maxPayload: 2 ** 20,
  perMessageDeflate: { threshold: 0 },
});

server.on("headers", (headers) => headers.push("X-Server: yes", "Set-Cookie: seen=1; Path=/"));

server.on("connection", (socket, request) => {
  const answers = {
    ping: () => socket.ping("are you there"),
    fragments: () => ["one ", "two ", "three"].forEach((part, index) => socket.send(part, { fin: index === 2 })),
    close: () => socket.close(4001, "enough"),
    request: () => socket.send(JSON.stringify({
      resource: request.url,
      origin: request.headers.origin,
      header: request.headers["x-client"],
      cookies: request.headers.cookie.split("; ").map((pair) => pair.split("=")),
      subprotocols: request.headers["sec-websocket-protocol"].split(/, */),
    })),
  };
  socket.on("pong", (payload) => socket.send(`pong: ${payload}`));
  socket.on("error", () => {});
  socket.on("message", (data, isBinary) => {
    const answer = isBinary ? undefined : answers[data.toString()];
    if (answer) {
      answer();
    } else {
      socket.send(data, { binary: isBinary });
    }
  });
});

server.on("listening", () => console.log(server.address().port));
process.stdin.on("end", () => process.exit()).resume();
