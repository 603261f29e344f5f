"""Stage two: one decoder trained with one seed on cached token grids."""
