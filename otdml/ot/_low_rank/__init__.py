"""Transport plans of low rank: all mass passes through a few hubs."""
