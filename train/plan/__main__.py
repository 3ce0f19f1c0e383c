"""Run `train.plan.plan`."""

from train.plan.plan import main

if __name__ == "__main__":
    main()
