"""What several scripts share, a module per idea. Nothing here imports Snakemake."""
