"""The highest rate a server keeps its promise at: a search any benchmark can use.

`_rates` says which rate to try next, `_step` loads a server at one, `_search` goes through them.
The modules are named with an underscore because `locust -f loadtest/` loads every other one,
in folders too.
"""
