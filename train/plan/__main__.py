"""Entry point: `python -m train.plan`; see `train.plan.plan`."""

import sys

from curt.config import run
from train.plan.plan import main, plan_class

if __name__ == "__main__":
    run(plan_class(sys.argv[1:]), main)
