"""The report: what it reads, one module for the sections of each question, sentences, plots, page."""
