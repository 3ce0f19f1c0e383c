"""Run `compress.prune.prune`."""

from compress.prune.prune import PruneConfig, work
from curt.config import run

if __name__ == "__main__":
    run(PruneConfig, work)
