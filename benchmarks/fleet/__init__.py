"""A fleet of servers in virtual time, which schedules with the functions of the real server.

`service` fits how long requests take from measured replies, `simulation` runs servers behind a
balancer, `validate` compares it with real servers, and `size` sizes fleets.
"""
