"""The load test: open arrivals, latency from the scheduled instant, exit code from the SLO."""
