"""`python -m archc` is the command `archc`."""

from archc.cli import main

if __name__ == "__main__":
    main()
