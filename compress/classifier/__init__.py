"""Train, calibrate and export the classifier that ships with a model."""
