"""Three audits (stream, sums, counters) that compare what should agree, and the run that makes them."""
