"""Run `compress.distill.distill`."""

from compress.distill.distill import DistillConfig, work
from curt.config import run

if __name__ == "__main__":
    run(DistillConfig, work)
