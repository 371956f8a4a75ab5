// Exits 0 when the page of this container answers and has counts to show.
"use strict";

const http = require("http");

function fail(why) {
  console.error(`result does not answer: ${why}`);
  process.exit(1);
}

http
  .get("http://127.0.0.1:8000/health", { timeout: 2000 }, (res) => {
    if (res.statusCode !== 200) fail(`status ${res.statusCode}`);
    process.exit(0);
  })
  .on("timeout", () => fail("timeout"))
  .on("error", (err) => fail(err.message));
