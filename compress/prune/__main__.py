"""Run `compress.prune.prune`."""

from compress.prune.prune import PruneConfig, prune
from curt.config import run

if __name__ == "__main__":
    run(PruneConfig, prune)
