"""`python -m frostline`: the command line, where `frostline` itself is not on the path."""

from frostline.cli import main

if __name__ == "__main__":
    main()
