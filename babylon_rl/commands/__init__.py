"""The command line's sub-apps, one file each: thin; each command calls one function and prints what it gave."""
