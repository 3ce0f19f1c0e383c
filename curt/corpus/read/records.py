"""What becomes of a record that gives no case: it is dropped by a rule, or set aside to be mended.

Nothing is lost either way. Records that can't be read lie in `quarantine.jsonl`, each with its
file, line, reason, remedy and its own text; mended there, the file is given back with `--mended`.
"""

from __future__ import annotations

from collections.abc import Mapping


class RecordError(ValueError):
    """A record that holds no usable case; the message is the reason and never quotes the facts."""


READING_RULES = frozenset(
    {"masked charge", "several defendants", "a fine alone", "no facts", "acquitted"}
)
"""Reasons that say something about the case and can't be mended: such records are dropped."""

REMEDIES: Mapping[str, str] = {
    "not UTF-8": "write the file as UTF-8, or give --encoding gb18030 if it is",
    "not GB18030": "write the file as UTF-8 and read it without --encoding",
    "not JSON": "complete the object: it may be cut off, or hold bare or single quotation marks",
    "not an object": "give an object a record, or a table with named columns",
    "several questions": "give each question a row of its own, with its answer",
    "not an object with a document": "give the judgment's text as `document`",
    "no fact": "give the facts as text in `fact`, or name their column with --map",
    "the ruling in the facts": "give the facts alone, or whole judgments with --judgments",
    "no charge": "give the charges in `accusation`, or name their column with --map",
    "unknown charge": "use a charge's name in the Criminal Law, with or without 罪",
    "no article": "give the articles in `meta.relevant_articles` as a list of numbers",
    "unreadable article": "use numbers of the Criminal Law: 264, or 133之一",
    "no term": "give `meta.term_of_imprisonment` in months, or name its column with --map",
    "unreadable term": "use whole months of 0 or more",
    "term over the legal maximum": "use at most 240 months for one charge and 300 for several",
    "unreadable fine": "use whole yuan of 0 or more",
    "unreadable answer": "give the verdict in the lines of Curt's answers: 罪名, 法条, 刑期",
    "unreadable flag": "use true or false, or 1 or 0",
    "no ruling": "give the whole document with 判决如下, or a table as CSV",
    "no sentence in the ruling": "state each defendant's sentence as 犯…罪，判处…",
    "several penalties and none to be served": "state what is to be served after 决定执行",
    "an impossible term": "use at most 300 months, and probation of at most 60",
    "days in a term": "give whole months: a term has no days here",
    "several terms at once": "state each defendant's sentence in a sentence of its own",
    "no cited article carries the charge": "cite the article of the charge before 判决如下",
    "not a case": "give the row as `curt.corpus` writes it",
}


def remedy_for(reason: str) -> str:
    """What mends a record with this reason."""
    return REMEDIES[reason.partition(":")[0]]  # after a colon comes the value
