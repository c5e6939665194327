"""Recording: what agents write and how it is read (record types, recorder, reader)."""
