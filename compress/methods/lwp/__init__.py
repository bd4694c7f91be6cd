"""LWP drops connections that a controller learns a network can do without."""
