"""Runs through Azure Machine Learning's own client and Azure storage, all of it on this machine."""
