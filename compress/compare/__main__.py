"""Run `compress.compare.compare`."""

from compress.compare.compare import CompareConfig, work
from curt.config import run

if __name__ == "__main__":
    run(CompareConfig, work)
