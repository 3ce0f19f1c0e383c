"""Side-by-side measurements, each with its raw figures."""
