"""`partition`: rows grouped by cluster on disk."""
