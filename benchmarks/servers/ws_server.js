// npm ws; it uses bufferutil and utf-8-validate where they are installed.
const { WebSocketServer } = require('ws');
const { LARGEST, QUESTION, options, makeHttp, listen } = require('./options.js');

const server = makeHttp();
const everybody = new Set();
const websockets = new WebSocketServer({ server, maxPayload: LARGEST, perMessageDeflate: options.deflate });

websockets.on('connection', (websocket, request) => {
  // A client that leaves without a Close.
  websocket.on('error', () => {});
  if (request.url === '/') {
    websocket.on('message', (data, isBinary) => websocket.send(data, { binary: isBinary }));
  } else if (request.url === '/broadcast') {
    everybody.add(websocket);
    websocket.on('close', () => everybody.delete(websocket));
    websocket.on('message', (data, isBinary) => {
      for (const receiver of everybody) receiver.send(data, { binary: isBinary });
    });
  } else {
    let count = 0;
    websocket.on('message', (data) => {
      if (data.equals(Buffer.from(QUESTION))) {
        websocket.send(String(count));
        count = 0;
      } else {
        count += 1;
      }
    });
  }
});

listen(server);
