"""What a loop minimises, and the methods that wrap it."""
