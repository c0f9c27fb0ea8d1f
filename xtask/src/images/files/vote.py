"""A voting page: two choices, counted in Redis."""

import os
import signal
import socket
import sys

import redis
from flask import Flask, make_response, render_template_string, request

CHOICES = [os.environ.get("VOTE1VALUE", "Cats"), os.environ.get("VOTE2VALUE", "Dogs")]
TITLE = os.environ.get("TITLE", "Azure Voting App")
HOST = socket.gethostname()

PAGE = """<!DOCTYPE html>
<html>
<head><title>{{ title }}</title></head>
<body>
<h1>{{ title }}</h1>
<form method="POST">
{% for choice in choices %}<button name="vote" value="{{ choice }}">{{ choice }}</button>
{% endfor %}<button name="vote" value="reset">Reset</button>
</form>
<p>{% for choice in choices %}{{ choice }} - {{ counts[choice] }}{% if not loop.last %} | {% endif %}{% endfor %}</p>
</body>
</html>
"""

app = Flask(__name__)
store = redis.Redis(
    host=os.environ["REDIS"],
    port=6379,
    password=os.environ.get("REDIS_PWD"),
    socket_connect_timeout=5,
    socket_timeout=5,
)


@app.route("/", methods=["GET", "POST"])
def index():
    vote = request.form.get("vote")
    if vote == "reset":
        store.mset({choice: 0 for choice in CHOICES})
    elif vote in CHOICES:
        store.incr(vote)
    counts = {choice: int(store.get(choice) or 0) for choice in CHOICES}
    page = render_template_string(PAGE, title=TITLE, choices=CHOICES, counts=counts)
    response = make_response(page)
    response.headers["X-Served-By"] = HOST
    return response


if __name__ == "__main__":
    # PID 1 gets no default action for SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    app.run(host="0.0.0.0", port=80, threaded=True)
