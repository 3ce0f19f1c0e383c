"""One self-contained HTML page about a run: what was measured, and what was not run.

`inputs` reads what the stages left in the run folder, `claims` turns it into numbers and
sentences, `figures` draws, `page` puts the page together. Every sentence is computed from the
figures it stands beside; nothing is claimed for a part that is missing.
"""
