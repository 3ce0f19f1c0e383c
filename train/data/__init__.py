"""The log is the dataset: trajectories, views, verification, publication, feedback."""
