// npm websocket. It does not compress.
const { server: WebSocketServer } = require('websocket');
const { LARGEST, QUESTION, makeHttp, listen } = require('./options.js');

const server = makeHttp();
const everybody = new Set();
const websockets = new WebSocketServer({
  httpServer: server,
  maxReceivedFrameSize: LARGEST,
  maxReceivedMessageSize: LARGEST,
});

function send(connection, message) {
  if (message.type === 'utf8') connection.sendUTF(message.utf8Data);
  else connection.sendBytes(message.binaryData);
}

websockets.on('request', (request) => {
  const connection = request.accept(null, request.origin);
  if (request.resource === '/') {
    connection.on('message', (message) => send(connection, message));
  } else if (request.resource === '/broadcast') {
    everybody.add(connection);
    connection.on('close', () => everybody.delete(connection));
    connection.on('message', (message) => {
      for (const receiver of everybody) send(receiver, message);
    });
  } else {
    let count = 0;
    connection.on('message', (message) => {
      if (message.utf8Data === QUESTION) {
        connection.sendUTF(String(count));
        count = 0;
      } else {
        count += 1;
      }
    });
  }
});

listen(server);
