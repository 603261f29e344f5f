"""Slides: read at a study's resolution, mapped by a trained decoder in bounded memory, written for viewers."""
