"""Export and compression of trained model folders."""
