"""The ground floor of the data: tables, connections, bulk transfer, history, the embedded server."""
