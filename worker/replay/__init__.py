"""`worker replay`: files through the same pipeline, in one process or several."""
