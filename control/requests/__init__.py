"""Reading admin requests: the caller and its permissions, fields, pages, update masks."""
