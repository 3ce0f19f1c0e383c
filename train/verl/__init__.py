"""The same rewards, penalties and cases for verl, a trainer for runs over many machines.

verl 0.9 scores completions one at a time, in any order. `train.verl.manager` waits until a
prompt's group is whole, so that group-relative length penalties are kept; `train.verl.reward` is
the plain function for everything else; `train.verl.export` writes the cases. Settings that need
the run's history are refused by `train.verl.group_scores`.
"""
