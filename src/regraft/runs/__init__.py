"""A run is a folder: its layout, reading it, writing it, and where its images came from."""
