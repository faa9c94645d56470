"""Each command of the admin API: `uplion NOUN VERB`, its options and how it prints."""
