// What every server here is told on its command line, and tells in return; see options.py.
const fs = require('fs');
const http = require('http');
const https = require('https');
const { parseArgs } = require('util');

const LARGEST = 1 << 24;
const BACKLOG = 16384;
const QUESTION = 'count?';

const { values: options } = parseArgs({
  options: { port: { type: 'string' }, tls: { type: 'string' }, deflate: { type: 'boolean', default: false } },
});

function makeHttp() {
  const refuse = (request, response) => response.writeHead(404).end();
  if (!options.tls) return http.createServer(refuse);
  const pem = fs.readFileSync(options.tls);
  return https.createServer({ cert: pem, key: pem }, refuse);
}

function listen(server) {
  server.listen({ port: Number(options.port), host: '127.0.0.1', backlog: BACKLOG }, () => console.log('ready'));
}

module.exports = { LARGEST, QUESTION, options, makeHttp, listen };
