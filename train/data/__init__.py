"""Training data: trajectories of runs, views of them, verification, publication, feedback."""
