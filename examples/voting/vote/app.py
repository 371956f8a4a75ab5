"""The voting page: each browser has one vote, which it may change at any time."""

import os
import secrets
import signal
import socket
import sys

import redis
import waitress
from flask import Flask, make_response, render_template, request

CHOICES = {"a": os.environ.get("OPTION_A", "Cats"), "b": os.environ.get("OPTION_B", "Dogs")}
INSTANCE = socket.gethostname()
# The stream is bounded, so that a database that is away for days cannot fill the queue's memory.
STREAM, STREAM_MAX = "votes", 1_000_000

app = Flask(__name__)
queue = redis.Redis(
    host=os.environ.get("REDIS_HOST", "redis"), socket_timeout=2, socket_connect_timeout=2, decode_responses=True
)


@app.get("/")
def page():
    return show(request.cookies.get("voter"), None)


@app.post("/")
def vote():
    choice = request.form.get("vote")
    if choice not in CHOICES:
        return "Vote for one of: " + ", ".join(CHOICES) + "\n", 400
    voter = request.cookies.get("voter") or secrets.token_hex(8)
    try:
        queue.xadd(STREAM, {"voter": voter, "vote": choice}, maxlen=STREAM_MAX, approximate=True)
    except redis.RedisError as err:
        app.logger.error("vote was not queued: %s", err)
        return "Your vote could not be stored. Please try again.\n", 503
    return show(voter, choice)


@app.get("/health")
def health():
    queue.ping()
    return "ok\n"


def show(voter, choice):
    body = render_template("index.html", choices=CHOICES, choice=choice, instance=INSTANCE)
    answer = make_response(body)
    answer.headers["Cache-Control"] = "no-store"
    if voter:
        answer.set_cookie("voter", voter, httponly=True, samesite="Lax")
    return answer


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"vote: {INSTANCE} listens on port 8000", flush=True)
    waitress.serve(app, host="0.0.0.0", port=8000, threads=8, ident=None)
