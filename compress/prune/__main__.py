"""Run `compress.prune.prune`."""

from compress.prune.prune import main

if __name__ == "__main__":
    main()
