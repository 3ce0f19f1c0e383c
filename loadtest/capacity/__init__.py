"""Find the highest rate of arrivals at which a server keeps its SLO.

`_rates` says which rate to try next, `_step` loads a server at one, `_search` goes through them.
The modules are named with an underscore because `locust -f loadtest/` loads every other one,
in folders too.
"""
