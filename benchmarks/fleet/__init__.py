"""A fleet of servers in virtual time, with the scheduling functions of the real one.

`service` says how long things take and is fitted from measured replies, `simulation` runs servers
behind a balancer, `sizing` says how many are needed; `replicas` measures real ones and `accuracy`
sets the simulation beside them. `python -m benchmarks.fleet` runs all of it.
"""
