"""What is computed: tiles and views, token grids, decoders, training, metrics.

Nothing here knows the command line, the study file or where a cache lives.
"""
