"""Many fits of one array that share its reads, what they are worth, and which K stands out."""
