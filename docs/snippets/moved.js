const http = require('http').createServer();
const WebSocketServer = require('websocket').server;

const server = new WebSocketServer({ httpServer: http, keepaliveInterval: 20000, closeTimeout: 5000 });

server.on('request', (request) => {
  if (request.origin !== 'http://example.com') {
    request.reject(403, 'wrong origin');
    return;
  }
  const connection = request.accept('echo', request.origin);

  connection.on('message', (message) => {
    if (message.type === 'utf8') connection.sendUTF(message.utf8Data);
    else connection.sendBytes(message.binaryData);
  });

  connection.on('close', (code, description) => {
    console.log(`${connection.remoteAddress} left: ${code} ${description}`);
  });
});

http.listen(8000, '127.0.0.1');
