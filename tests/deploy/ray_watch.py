"""Runs in Ray's environment: writes how many replicas are in which state, a JSON line each time."""

from __future__ import annotations

import json
import sys
import time

import ray
from ray import serve


def main() -> None:
    ray.init(address="auto", log_to_driver=False)
    while True:
        deployment = serve.status().applications["curt"].deployments["curt"]
        states = {str(state): n for state, n in deployment.replica_states.items() if n}
        sys.stdout.write(json.dumps(states) + "\n")
        sys.stdout.flush()
        time.sleep(0.5)


if __name__ == "__main__":
    main()
