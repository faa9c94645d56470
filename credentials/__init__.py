"""What services share about credentials: the form of API keys, their peppers, the headers that carry them."""
