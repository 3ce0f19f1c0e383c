"""Run `compress.distill.distill`."""

from compress.distill.distill import main

if __name__ == "__main__":
    main()
