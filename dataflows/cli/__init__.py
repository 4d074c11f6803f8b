"""The commands of `waxwing`, one file each; `main` finds them by file name."""
