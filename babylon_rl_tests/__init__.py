"""Tests of babylon_rl; the folders mirror the package."""
