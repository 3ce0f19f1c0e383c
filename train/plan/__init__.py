"""Memory, speed, hours and cost of a training run before it is started."""
