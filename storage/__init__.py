"""What every room may use: the cache folder, files that appear whole or not at all, and the error for users."""
