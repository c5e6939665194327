"""Tests of babylon_rl.defs."""
