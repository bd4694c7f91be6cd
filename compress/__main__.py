"""`python -m compress` is the command `compress` (there is an old Unix tool of that name)."""

from compress.cli import main

if __name__ == "__main__":
    main()
