// A client for tests/test_interop.py: `node client.js LIBRARY TOPIC URL` prints one line of JSON.
"use strict";

const crypto = require("crypto");

// Put what comes where whoever waits for it finds it.
function makeQueue() {
  const items = [];
  const waiting = [];
  return {
    put: (item) => (waiting.length ? waiting.shift()(item) : items.push(item)),
    get: () => (items.length ? Promise.resolve(items.shift()) : new Promise((resolve) => waiting.push(resolve))),
  };
}

const libraries = {
  // The client of the npm package `websocket`.
  websocket: (url, { subprotocols, origin, headers, frameSize = 2 ** 31 } = {}) => new Promise((resolve, reject) => {
    const { client: Client } = require("websocket");
    const client = new Client({ fragmentationThreshold: frameSize, maxReceivedMessageSize: 2 ** 24 });
    client.on("connectFailed", reject);
    client.on("httpResponse", (response) => {
      response.resume();
      reject({ status: response.statusCode, reason: response.headers["x-websocket-reject-reason"] });
    });
    client.on("connect", (connection) => {
      const messages = makeQueue();
      const pongs = makeQueue();
      const closed = new Promise((done) => connection.on("close", (code, reason) => done([code, reason])));
      connection.on("message", (message) => messages.put(message.utf8Data ?? message.binaryData));
      connection.on("pong", (payload) => pongs.put(payload.toString()));
      connection.on("error", () => {});
      resolve({
        subprotocol: connection.protocol,
        headers: client.response.headers,
        closed,
        receive: messages.get,
        send: (message) => connection.send(message),
        ping: (payload) => {
          connection.ping(payload);
          return pongs.get();
        },
        close: (code, reason) => {
          connection.close(code, reason);
          return closed;
        },
      });
    });
    client.connect(url, subprotocols, origin, headers);
  }),

  ws: (url, { subprotocols = [], origin, headers, frameSize } = {}) => new Promise((resolve, reject) => {
    const { WebSocket } = require("ws");
    const socket = new WebSocket(url, subprotocols, { origin, headers, perMessageDeflate: { threshold: 0 } });
    const messages = makeQueue();
    const pongs = makeQueue();
    const closed = new Promise((done) => socket.on("close", (code, reason) => done([code, reason.toString()])));
    let response;
    socket.on("upgrade", (answer) => { response = answer; });
    socket.on("unexpected-response", (request, answer) => {
      answer.resume();
      reject({ status: answer.statusCode, reason: answer.headers["x-websocket-reject-reason"] });
    });
    socket.on("error", reject);
    socket.on("message", (data, isBinary) => messages.put(isBinary ? data : data.toString()));
    socket.on("pong", (payload) => pongs.put(payload.toString()));
    socket.on("open", () => resolve({
      subprotocol: socket.protocol,
      headers: response.headers,
      closed,
      receive: messages.get,
      send: (message) => {
        const size = frameSize ?? message.length;
        let start = 0;
        do {
          socket.send(message.slice(start, start + size), { fin: start + size >= message.length });
          start += size;
        } while (start < message.length);
      },
      ping: (payload) => {
        socket.ping(payload);
        return pongs.get();
      },
      close: (code, reason) => {
        socket.close(code, reason);
        return closed;
      },
    }));
  }),
};

const topics = {
  async exchange(open, url) {
    const connection = await open(url);
    const result = {};
    connection.send("Grüße, 世界 🌍");
    result.text = await connection.receive();
    connection.send(Buffer.from([0, 1, 127, 128, 255]));
    result.binary = (await connection.receive()).toString("hex");
    connection.send(Buffer.alloc(2 ** 20, Buffer.from(Array.from({ length: 251 }, (_, index) => index))));
    result.large = crypto.createHash("sha256").update(await connection.receive()).digest("hex");
    connection.send("fragments");
    result.assembled = await connection.receive();
    const fragmenting = await open(url, { frameSize: 4 });
    fragmenting.send("one two three");
    result.fragmented = await fragmenting.receive();
    await Promise.all([connection.close(1000, ""), fragmenting.close(1000, "")]);
    return result;
  },

  async control(open, url) {
    const connection = await open(url);
    const result = { pong: await connection.ping("hello") };
    connection.send("ping");
    result.ping = await connection.receive();
    await connection.close(1000, "");
    return result;
  },

  async handshake(open, url) {
    const connection = await open(`${url}path?x=1`, {
      subprotocols: ["superchat", "chat"],
      origin: "http://example.com",
      headers: { "X-Client": "yes", "Cookie": "a=1; b=two" },
    });
    connection.send("request");
    const request = JSON.parse(await connection.receive());
    const { subprotocol, headers } = connection;
    await connection.close(1000, "");
    return { subprotocol, header: headers["x-server"], set_cookie: headers["set-cookie"].join(), request };
  },

  async leave(open, url) {
    return { code: (await (await open(url)).close(4002, "done"))[0] };
  },

  async wait(open, url) {
    const connection = await open(url);
    connection.send("close");
    return { closed: await connection.closed };
  },

  async too_large(open, url) {
    const connection = await open(url);
    connection.send(Buffer.alloc(2 ** 21));
    return { code: (await connection.closed)[0] };
  },

  async compressed(open, url) {
    const connection = await open(url);
    const fragmenting = await open(url, { frameSize: 100 });
    const result = { extensions: connection.headers["sec-websocket-extensions"], same: 0 };
    for (let number = 0; number < 40; number += 1) {
      const text = `${number}: ${"Grüße, 世界 ".repeat(number)}`;
      const noise = crypto.createHash("sha256").update(text).digest();
      for (const message of [text, noise, Buffer.alloc(number * 1000)]) {
        for (const sender of message.length ? [connection, fragmenting] : [connection]) {
          sender.send(message);
          const answer = await sender.receive();
          result.same += typeof message === "string" ? answer === message : Buffer.compare(answer, message) === 0;
        }
      }
    }
    connection.send("fragments");
    result.assembled = await connection.receive();
    await Promise.all([connection.close(1000, ""), fragmenting.close(1000, "")]);
    return result;
  },

  async refused(open, url) {
    try {
      await open(`${url}refused`);
    } catch (error) {
      return error;
    }
  },
};

const [library, topic, url] = process.argv.slice(2);
topics[topic](libraries[library], url).then((result) => console.log(JSON.stringify(result)));
