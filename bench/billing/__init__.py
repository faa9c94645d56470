"""How fast billing counts, and what an event costs: `python -m bench.billing`."""
