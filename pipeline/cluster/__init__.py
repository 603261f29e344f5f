"""The tasks of both stages on a dask cluster; only what is in here knows of dask."""
