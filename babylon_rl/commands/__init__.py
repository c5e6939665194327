"""Commands on a user's own database, one file each: thin; each calls one function and prints what it gave."""
