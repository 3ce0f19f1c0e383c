"""Run `serve.drift.drift`."""

from serve.drift.drift import main

if __name__ == "__main__":
    main()
