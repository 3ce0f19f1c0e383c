"""Run `compress.distill.distill`."""

from compress.distill.distill import DistillConfig, distill
from curt.config import run

if __name__ == "__main__":
    run(DistillConfig, distill)
