"""Images and masks of a study: data sets, class maps, tiles, splits and views."""
