"""Studies: many runs that differ along named axes, planned, executed, continued and selected on."""
