"""Requests of HTTP clients: path, query and JSON body, judged strictly. The edge writes the answers."""
