"""The law as data and arithmetic: numerals, verdicts, statutes, legality, the scale of terms."""
