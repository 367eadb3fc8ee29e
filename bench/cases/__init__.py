"""What benchmarks measure: shapes, inputs, and the least time of the work."""
