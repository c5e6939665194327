"""Tests of babylon_rl.database."""
