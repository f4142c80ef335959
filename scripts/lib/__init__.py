"""What several scripts share, a module per idea. Nothing here imports Snakemake."""

import gc

# Libraries load a million objects that all stay. Looking for garbage among them after every 700 new ones, as Python
# does, takes a tenth to a sixth of the start-up of a script with PyTorch. Most garbage needs no looking: it goes when
# nothing refers to it any more.
gc.set_threshold(100_000, 20, 20)
