// The result page: counts are pushed to every open browser as server-sent events, within moments of a vote.
"use strict";

const fs = require("fs");
const http = require("http");
const os = require("os");
const path = require("path");
const { Client } = require("pg");

const labels = { a: process.env.OPTION_A || "Cats", b: process.env.OPTION_B || "Dogs" };
const page = fs
  .readFileSync(path.join(__dirname, "public", "index.html"), "utf8")
  .replaceAll("{{a}}", escape(labels.a))
  .replaceAll("{{b}}", escape(labels.b))
  .replaceAll("{{instance}}", escape(os.hostname()));
const secret = process.env.DB_PASSWORD_FILE || "/run/secrets/db_password";
const browsers = new Set();
let counts = null; // null while the database cannot be reached

function escape(text) {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

function publish(next) {
  const text = JSON.stringify(next);
  if (text === JSON.stringify(counts)) return;
  counts = next;
  for (const browser of browsers) browser.write(`data: ${text}\n\n`);
}

// follow holds one connection that is told of each stored vote. It returns when the connection ends.
async function follow() {
  const db = new Client({
    host: process.env.DB_HOST || "db",
    user: "postgres",
    database: "votes",
    password: fs.readFileSync(secret, "utf8").trim(),
    connectionTimeoutMillis: 3000,
    keepAlive: true,
  });
  const ended = new Promise((resolve) => {
    db.on("end", resolve);
    db.on("error", (err) => resolve(err));
  });
  await db.connect();
  let reading = false, again = false;
  const read = async () => {
    // One query at a time; votes that arrive meanwhile share the next one.
    if (reading) { again = true; return; }
    reading = true;
    try {
      do {
        again = false;
        const { rows } = await db.query("SELECT choice, count(*)::int AS n FROM votes GROUP BY choice");
        const next = { a: 0, b: 0 };
        for (const row of rows) if (row.choice in next) next[row.choice] = row.n;
        publish(next);
      } while (again);
    } catch (err) {
      db.emit("error", err);
    } finally {
      reading = false;
    }
  };
  db.on("notification", read);
  await db.query("LISTEN votes");
  console.log("result: connected to the database");
  await read();
  const err = await ended;
  db.end().catch(() => {});
  throw err || new Error("the database closed the connection");
}

async function followForever() {
  for (let wait = 100; ; wait = Math.min(wait * 2, 3000)) {
    const since = Date.now();
    try {
      await follow();
    } catch (err) {
      console.error(`result: ${err.message}`);
    }
    publish(null);
    if (Date.now() - since > 10000) wait = 100;
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

const server = http.createServer((req, res) => {
  switch (req.url) {
    case "/":
      res.writeHead(200, { "content-type": "text/html; charset=utf-8", "cache-control": "no-store" });
      return res.end(page);
    case "/events":
      res.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
      res.write(`retry: 500\ndata: ${JSON.stringify(counts)}\n\n`);
      browsers.add(res);
      return res.on("close", () => browsers.delete(res));
    case "/health":
      res.writeHead(counts ? 200 : 503, { "content-type": "text/plain" });
      return res.end(counts ? "ok\n" : "no connection to the database\n");
    default:
      res.writeHead(404, { "content-type": "text/plain" });
      return res.end("not found\n");
  }
});

for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => process.exit(0));
server.listen(8000, () => console.log(`result: ${os.hostname()} listens on port 8000`));
followForever();
