#!/bin/sh
# As the public image: no start without a password unless the user says so.
set -eu
if [ -n "${REDIS_PASSWORD:-}" ]; then
    set -- --requirepass "$REDIS_PASSWORD"
elif [ "${ALLOW_EMPTY_PASSWORD:-no}" != yes ]; then
    echo "REDIS_PASSWORD is empty; set ALLOW_EMPTY_PASSWORD=yes to start without one" >&2
    exit 1
fi
exec redis-server --bind 0.0.0.0 --protected-mode no --dir /data --save '' "$@"
