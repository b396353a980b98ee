"""What every room may use: the cache folder, and files that appear whole or not at all."""
