"""The highest rate a server keeps its promise at: a search any benchmark can use.

The modules are named with an underscore because `locust -f loadtest/` loads every other one,
in folders too.
"""

from loadtest.capacity._drawing import draw_capacity
from loadtest.capacity._rates import SearchPlan, find_highest, next_rate
from loadtest.capacity._rows import read_rows, write_rows
from loadtest.capacity._search import Capacity, search
from loadtest.capacity._step import Ask, AskResult, RateStep, Row, StepPlan, run_step

__all__ = [
    "Ask",
    "AskResult",
    "Capacity",
    "RateStep",
    "Row",
    "SearchPlan",
    "StepPlan",
    "draw_capacity",
    "find_highest",
    "next_rate",
    "read_rows",
    "run_step",
    "search",
    "write_rows",
]
