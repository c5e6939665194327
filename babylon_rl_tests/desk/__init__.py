"""Tests with a started instance: webserver and daemon on PostgreSQL, as `babylon-rl ui` starts them."""
