"""Corpora: `python -m curt.corpus COMMAND @configs/... --key value`; COMMAND --help for settings.

build    train, dev and test sets from judgments, CAIL2018, the hub or the generator
augment  more training cases: distracting claims, other words
tasks    charge, article, term and ruling as tasks of their own, in stratified sets
"""

from __future__ import annotations

import logging
import sys

from curt.config import run

logger = logging.getLogger("curt.corpus")


def main() -> None:
    """Run a command; exits with a message on bad input."""
    command, *arguments = sys.argv[1:] or [""]
    if command in ("-h", "--help") or command not in COMMANDS:
        wrong = command and not command.startswith(("-h", "--help"))
        print(__doc__, file=sys.stderr if wrong or not command else sys.stdout)
        sys.exit(f"error: no command {command!r}" if wrong else 0 if command else 2)
    sys.argv[0] += f" {command}"
    try:
        COMMANDS[command](arguments)
    except KeyboardInterrupt:
        sys.exit("stopped: run the same command again to go on")


def build(arguments: list[str]) -> None:
    """Make the sets and say what they hold."""
    from curt.corpus.build.pipeline import CorpusConfig, build_corpus

    def write(config: CorpusConfig) -> int:
        summary = build_corpus(config)
        logger.info(
            "corpus %s: %s of %d records, dropped %s, set aside %s; card in %s",
            config.out, summary["counts"], summary["records"], summary["dropped"],
            summary["quarantined"], config.out / "card.html",
        )  # fmt: skip
        if any(summary["counts"].values()):
            return 0
        logger.error("no case was kept: see %s", config.out / "quarantine.jsonl")
        return 1

    run(CorpusConfig, write, arguments)


def tasks(arguments: list[str]) -> None:
    """Make the sets of single tasks."""
    from curt.corpus.tasks import TasksConfig, write_tasks

    run(TasksConfig, write_tasks, arguments)


def augment(arguments: list[str]) -> None:
    """Add cases to the training set."""
    from curt.corpus.augment.command import AugmentConfig, write_augmented
    from curt.endpoint import EndpointUnavailableError

    expected = (OSError, ValueError, EndpointUnavailableError)
    run(AugmentConfig, write_augmented, arguments, expected=expected)


COMMANDS = {"augment": augment, "build": build, "tasks": tasks}

if __name__ == "__main__":
    main()
