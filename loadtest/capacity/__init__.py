"""The highest rate a server keeps its promise at: a search any benchmark can use.

The modules are named with an underscore because `locust -f loadtest/` loads every other one,
in folders too.
"""

from loadtest.capacity._drawing import draw_capacity
from loadtest.capacity._rows import read_rows, write_rows
from loadtest.capacity._search import Capacity, next_rate, search
from loadtest.capacity._step import Answer, Ask, Plan, Row, Step, run_step

__all__ = [
    "Answer",
    "Ask",
    "Capacity",
    "Plan",
    "Row",
    "Step",
    "draw_capacity",
    "next_rate",
    "read_rows",
    "run_step",
    "search",
    "write_rows",
]
