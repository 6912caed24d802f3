// A Node HTTP/2 server with a path for each thing that a test wants. Prints its port, then serves until stdin ends.
// With a key and a certificate as arguments it speaks TLS, and HTTP/1.1 to whoever offers only that.
import fs from "node:fs";
import http2 from "node:http2";

const [key, cert] = process.argv.slice(2);
const options = { settings: { maxConcurrentStreams: 100, initialWindowSize: 65535 } };
const server = key
  ? http2.createSecureServer({ ...options, key: fs.readFileSync(key), cert: fs.readFileSync(cert), allowHTTP1: true })
  : http2.createServer(options);

let cancelled = 0;

function pattern(size) {
  return Buffer.from("0123456789abcdef".repeat(Math.ceil(size / 16)).slice(0, size));
}

function drip(response, count, size, done) {
  let sent = 0;
  const next = () => {
    if (sent === count) return done();
    response.write(`data: ${String(sent++).padStart(size, "0")}\n\n`);
    setImmediate(next);
  };
  next();
}

const routes = {
  "/echo": (request, response) => {
    response.writeHead(200, { "x-from": "node" });
    request.pipe(response);
  },
  "/digest": (request, response) => {
    let size = 0;
    request.on("data", (chunk) => (size += chunk.length));
    request.on("end", () => response.end(String(size)));
  },
  "/big": (request, response, query) => response.end(pattern(Number(query.get("size")))),
  "/events": (request, response, query) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    drip(response, Number(query.get("count")), 20, () => response.end());
  },
  "/trailers": (request, response) => {
    response.writeHead(200, { trailer: "x-sum" });
    response.write("body");
    response.addTrailers({ "x-sum": "42" });
    response.end();
  },
  "/hints": (request, response) => {
    response.writeEarlyHints({ link: "</style.css>; rel=preload" });
    response.end("after the hints");
  },
  "/early": (request, response) => response.end("enough"),
  "/reset": (request, response) => {
    response.write("part");
    setImmediate(() => response.stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR));
  },
  "/refuse": (request, response) => response.stream.close(http2.constants.NGHTTP2_REFUSED_STREAM),
  "/hang": (request, response) => {
    response.write("started");
    response.stream.on("close", () => (cancelled += response.stream.rstCode === 8 ? 1 : 0));
  },
  "/cancelled": (request, response) => response.end(String(cancelled)),
  "/goaway": (request, response) => {
    const session = response.stream.session;
    response.write("before ");
    session.goaway(0, response.stream.id, Buffer.from("bye"));
    setImmediate(() => response.end("after"));
  },
  "/close": (request, response) => {
    response.stream.session.close();
    drip(response, 10, 20, () => response.end());
  },
  "/destroy": (request, response) => {
    response.write("part");
    setImmediate(() => response.stream.session.destroy());
  },
  "/settings": (request, response, query) => {
    const settings = {
      maxConcurrentStreams: Number(query.get("streams")),
      initialWindowSize: Number(query.get("window")),
      headerTableSize: Number(query.get("table")),
    };
    response.stream.session.settings(settings, () => response.end("acknowledged"));
  },
  "/ping": (request, response) =>
    response.stream.session.ping(Buffer.from("holdfast"), (error, duration, payload) =>
      response.end(error ? "no" : payload)),
};

server.on("request", (request, response) => {
  const url = new URL(request.url, "http://localhost");
  request.on("error", () => {});
  response.on("error", () => {});
  response.stream?.on("error", () => {});
  (routes[url.pathname] ?? ((_, answer) => answer.writeHead(404).end()))(request, response, url.searchParams);
});
server.on("sessionError", () => {});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.on("end", () => process.exit(0)).resume();
