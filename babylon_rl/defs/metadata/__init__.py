"""What a person sees beside a materialization, made from a window's own rows.

Each asset has one function: the rows of one window in, metadata out. Dagster draws a table where it stands, and a
Markdown value too as long as it has fewer than 1000 characters, so plots are kept below that. Plain numbers become
plots over partitions. Nothing here is Markdown that anyone but this package wrote.
"""
