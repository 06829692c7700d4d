"""Rows to groups to packed batches: schemas, sources, rendering, packing, and looking at all of it."""
