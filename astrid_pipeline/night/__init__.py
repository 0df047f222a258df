"""What is done to one field in one night, stage by stage, without Dagster: usable from a notebook.

Each stage takes the products of the one before, treats every exposure by itself, keeps what could be made
and says what could not: one bad file never costs a night.
"""
