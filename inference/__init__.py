"""A worker: takes tickets of one model, runs their requests on an engine, and reports what they used."""
