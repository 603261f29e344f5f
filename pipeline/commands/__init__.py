"""The commands, in groups. Importing them loads no torch, no xarray and no fsspec: that would take seconds."""
