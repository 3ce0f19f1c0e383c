"""Length penalties side by side: same warm start, steps and seeds."""
