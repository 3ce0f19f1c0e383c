"""A fleet of servers in virtual time, with the scheduling functions of the real one.

`service` says how long things take and is fitted from measured replies, `replica` is one server,
`fleet` many behind a balancer, `sizing` how many are needed; `collect` measures real replicas and
`accuracy` sets the simulation beside them. `python -m benchmarks.fleet` runs all of it.
"""
