"""What stands between scenes on a disk and the networks: one subject per file, named for it."""
