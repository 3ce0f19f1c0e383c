#!/usr/bin/env bash
# The engine and the server in front of it, in one container. CURT_ENGINE says which engine; further
# arguments go to it. SIGTERM drains the server first, as its last answers need the engine. Where
# one of the two ends by itself the other is ended too, so that the container is started anew.
set -euo pipefail

: "${CURT_MODEL:?name a model folder}"
ENGINE_PORT=${ENGINE_PORT:-8001}
ENGINE_READY_S=${ENGINE_READY_S:-600}
PYTHON=${PYTHON:-/opt/venv/bin/python}
export CURT_ENGINE=${CURT_ENGINE:-vllm}
export CURT_ENGINE_URL=http://127.0.0.1:$ENGINE_PORT

# The engine listens inside the container only: it asks nobody for a key.
case $CURT_ENGINE in
vllm)
    vllm serve "$CURT_MODEL" --host 127.0.0.1 --port "$ENGINE_PORT" --served-model-name curt \
        --enable-prefix-caching --disable-uvicorn-access-log "$@" &
    ;;
tensorrt-llm)
    HOST=127.0.0.1 PORT=$ENGINE_PORT "$CURT_MODEL/launch.sh" "$@" &
    ;;
*)
    echo "error: CURT_ENGINE=$CURT_ENGINE: vllm or tensorrt-llm" >&2
    exit 2
    ;;
esac
engine=$!

# Whichever of the two was started last: the server, once there is one.
asked=
stop() {
    asked=$!
    kill -TERM "$asked" 2>/dev/null || true
}
trap stop TERM INT

is_healthy() {
    "$PYTHON" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=2)' \
        "$CURT_ENGINE_URL/health" 2>/dev/null
}
until is_healthy; do
    if [ -n "$asked" ] || ! kill -0 "$engine" 2>/dev/null; then
        wait "$engine" || true
        echo "error: the engine ended before it was ready" >&2
        exit 1
    fi
    if [ "$SECONDS" -ge "$ENGINE_READY_S" ]; then
        echo "error: the engine was not ready within $ENGINE_READY_S s" >&2
        kill -TERM "$engine"
        exit 1
    fi
    sleep 1
done

"$PYTHON" -m serve &
server=$!

# How a process ended; a signal to this script ends `wait` before it has.
ending_of() {
    while kill -0 "$1" 2>/dev/null; do
        wait "$1" || true
    done
    wait "$1"
}
status=0
wait -n "$server" "$engine" || status=$?
if [ -n "$asked" ]; then
    # Once asked to end, the server is not asked again: a second signal would cut its draining.
    [ "$asked" = "$server" ] || kill -TERM "$server" 2>/dev/null || true
    status=0
    ending_of "$server" || status=$?
else
    echo "error: the engine or the server ended unasked, with status $status" >&2
    [ "$status" -ne 0 ] || status=1
    kill -TERM "$server" 2>/dev/null || true
    ending_of "$server" || true
fi
kill -TERM "$engine" 2>/dev/null || true
ending_of "$engine" || true
exit "$status"
