"""What `maveriq_planner.quantize` is made of: one pipeline, its patterns, the exact split, the counts, the tables."""
