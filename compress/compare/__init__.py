"""One table and one page from which a person chooses among the artifacts of one parent."""
