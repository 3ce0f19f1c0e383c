"""The seeded case generator and the sentencing calculus behind it."""
