"""Runs on a real Slurm, all of it on this machine."""
