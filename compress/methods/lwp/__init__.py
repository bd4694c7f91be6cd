"""LWP drops those connections of a densely connected network that a controller learns it can do without."""
