"""From published records to cases: CAIL2018 rows, whole judgments, tables and the hub."""
